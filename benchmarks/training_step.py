"""A training step in every precision and memory layout that this device offers, and which of them a site would take.

Each network and patch: the same network in fp32 with ordinary memory (the alternative) and in all other ways, steps
taken in turns, one patch a step, with loss, backward pass and optimiser. Processor time on a CPU, wall time on a GPU.
Then what the trial of a job picks, and how much longer its steps take than those of the best way.

    .venv/bin/python -m benchmarks.training_step [--networks unet dynunet] [--patches 64 96] [--json FILE]
"""

import argparse
import copy
import json
import statistics
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.timing import machine
from fl_app.config import Job
from fl_app.training.device import choose_device
from fl_app.training.precision import Name
from fl_app.training.step import RandomSteps
from fl_app.training.trainer import ready_network
from fl_app.training.trial import Way, quickest_way, timed

BASE = Way("fp32", False)


def compare(name: str, patch: int, device: torch.device, repeats: int) -> dict[str, object]:
    """Median seconds of each way, and the trial's choice."""
    job = Job.model_validate(
        {"data": {"patch_voxels": [patch] * 3}, "network": {"name": name}, "training": {"batch_size": 1}}
    )
    network = ready_network(job, device)
    halves: tuple[Name, ...] = ("bf16", "fp16") if device.type == "cuda" else ("bf16",)
    ways = [BASE, Way("fp32", True), *(Way(half, layout) for half in halves for layout in (False, True))]
    steps = {
        way: RandomSteps(way.laid_out(copy.deepcopy(network)), [patch] * 3, 1, device, way.precision, job.training)
        for way in ways
    }
    for each in steps.values():
        each.step()
    taken: dict[Way, list[float]] = {way: [] for way in ways}
    for _ in range(repeats):
        for way, each in steps.items():
            taken[way].append(timed(each.step, device))
    steps.clear()
    medians = {way: statistics.median(seconds) for way, seconds in taken.items()}
    chosen, _ = quickest_way(job, network, device, None)
    best = min(medians, key=lambda way: medians[way])
    print(f"{name} {patch}^3")
    for way, seconds in medians.items():
        spread = f"{min(taken[way]):.3f} to {max(taken[way]):.3f}"
        print(f"  {way!s:22} {seconds:7.3f} s ({spread})  {medians[BASE] / seconds:5.2f} x sooner than {BASE}")
    print(f"  the trial takes: {chosen}; the best's steps take {medians[best] / medians[chosen]:.3f} of its time")
    return {
        "seconds": {str(way): taken[way] for way in ways},
        "chosen": str(chosen),
        "times sooner": medians[BASE] / medians[chosen],
        "chosen over best": medians[chosen] / medians[best],
    }


def main(
    networks: Sequence[str], patches: Sequence[int], device: torch.device, repeats: int, report: Path | None
) -> None:
    """All networks and patches."""
    rows = {f"{name} {patch}": compare(name, patch, device, repeats) for name in networks for patch in patches}
    if report:
        report.write_text(json.dumps({"steps": rows, "machine": machine()}, indent=1) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--networks", nargs="+", default=["unet", "dynunet"])
    parser.add_argument("--patches", nargs="+", type=int, default=[64, 96])
    parser.add_argument("--device", default="auto")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    main(options.networks, options.patches, choose_device(options.device), options.repeats, options.json)
