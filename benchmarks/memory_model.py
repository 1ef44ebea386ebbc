"""The memory model against measured training memory: 30 random networks of the default search space.

Fitted to 4 other networks first, as a site does. Then networks in fresh processes: how much the resident peak grows
while they train, beside the prediction; it holds what no model of a network can know, such as work space and memory
that the allocator keeps. The default U-Net, by the same measures, is the alternative to all of them.

    .venv/bin/python -m benchmarks.memory_model
"""

import multiprocessing
import re
import statistics
import time
from pathlib import Path

import numpy as np
import torch
from scipy.stats import spearmanr
from torch import nn

from fl_app.config import Job
from fl_app.config.space import SearchSpace
from fl_app.networks.registry import build_network
from fl_app.networks.space.architecture import Architecture, read_architecture
from fl_app.networks.space.sampling import NetworkSampler
from fl_app.networks.space.supernet import DiscreteNetwork
from fl_app.search.memory import calibrate, measured_memory

NETWORKS, FRESH = 30, 3
SPACE = SearchSpace()
# name, precision, and what is done to save memory
WAYS: dict[str, dict[str, object]] = {
    "fp32": {"precision": "fp32"},
    "bf16": {"precision": "bf16"},
    "bf16, computing again, weights updated one by one": {
        "precision": "bf16",
        "recompute": True,
        "early_update": True,
    },
}
CPU = torch.device("cpu")
MIB = 2**20


def job(**training: object) -> Job:
    """The job that ./simulate.sh runs, at 64^3."""
    return Job.model_validate(
        {
            "data": {"patch_voxels": (64, 64, 64)},
            "network": {"channels": (16, 32, 64, 128)},
            "training": {"batch_size": 1, **training},
        }
    )


def resident_growth(text: str | None, way: str, queue: "multiprocessing.Queue[float]") -> None:
    """Train one network for two steps, a small patch first so that libraries are loaded; put the growth of the peak."""
    torch.set_num_threads(1)
    chosen = job(**WAYS[way])
    small = chosen.model_copy(update={"data": chosen.data.model_copy(update={"patch_voxels": (16, 16, 32)})})
    measured_memory(built(text, chosen), small, CPU)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts from what is resident now
    before = resident("VmHWM")
    measured_memory(built(text, chosen), chosen, CPU)
    queue.put(resident("VmHWM") - before)


def built(text: str | None, chosen: Job) -> nn.Module:
    """A network from its architecture's JSON; the default U-Net from None."""
    return DiscreteNetwork(SPACE, read_architecture(text, SPACE), 1) if text else build_network(chosen)


def resident(line: str) -> float:
    """This process's resident memory (VmRSS) or its peak (VmHWM) in bytes, as Linux counts it."""
    found = re.search(rf"{line}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return 1024 * float(found[1]) if found else float("nan")


def in_a_fresh_process(architecture: Architecture | None, way: str) -> float:
    """The growth of the resident peak, in bytes."""
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    process = context.Process(target=resident_growth, args=(architecture and architecture.to_json(), way, queue))
    process.start()
    grown = queue.get(timeout=300)
    process.join()
    queue.close()
    return float(grown)


def main() -> None:
    """Print errors and rank correlation of each way to train, and the resident peaks."""
    torch.set_num_threads(1)
    for way, settings in WAYS.items():
        chosen = job(**settings)
        started = time.monotonic()
        memory = calibrate(chosen, SPACE, CPU)
        fitted = time.monotonic() - started
        sampler, chance = NetworkSampler(memory), np.random.default_rng(1)
        networks = [sampler.draw(chance) for _ in range(NETWORKS)]
        predicted = np.array([memory.total(each) for each in networks])
        measured = np.array([measured_memory(DiscreteNetwork(SPACE, each, 1), chosen, CPU) for each in networks])
        errors = np.abs(predicted / measured - 1)
        plain = measured_memory(build_network(chosen), chosen, CPU)
        print(
            f"{way}: {measured.min() / MIB:.1f} to {measured.max() / MIB:.1f} MiB measured (default U-Net "
            f"{plain / MIB:.1f}); error {statistics.median(errors):.2%} median, {errors.max():.2%} largest; rank "
            f"correlation {spearmanr(predicted, measured).statistic:.4f}; fit {memory.scale:.4f} x + "
            f"{memory.offset / MIB:.2f} MiB in {fitted:.0f} s"
        )
        grown = in_a_fresh_process(None, way)
        print(f"    fresh process: default U-Net {plain / MIB:.1f} MiB measured, resident + {grown / MIB:.1f} MiB")
        order = np.argsort(predicted)[np.linspace(0, NETWORKS - 1, FRESH).astype(int)]
        for index in order:
            grown = in_a_fresh_process(networks[index], way)
            print(f"    fresh process: predicted {predicted[index] / MIB:.1f} MiB, resident + {grown / MIB:.1f} MiB")


if __name__ == "__main__":
    main()
