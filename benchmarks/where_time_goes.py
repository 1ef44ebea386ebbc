"""Where the time of a training step goes, before and after, and what the machine could do at best.

Before: the job's network in fp32 with ordinary memory and MONAI's `DiceCELoss`, as its tutorials train. After: as a
site trains it. Both by torch's profiler, one thread, the quick job's network and patch. The floor is the step's
floating-point operations over the rate of a large matrix product in the same precision on the same thread.

    .venv/bin/python -m benchmarks.where_time_goes [--job FILE] [--steps N]
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import torch
from monai.losses.dice import DiceCELoss
from torch import nn
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.steps import QUICK
from fl_app.config_file import load_job
from fl_app.training.step import RandomSteps
from fl_app.training.trainer import ready_network
from fl_app.training.trial import Way, usual_way

# the first words that an operator's name holds
GROUPS = {
    "convolution, backward": ("convolution_backward", "conv_backward", "guarded_backward"),
    "convolution, forward": ("conv",),
    "normalisation": ("norm",),
    "activation": ("relu",),
    "loss": ("softmax", "log", "sum", "mean", "one_hot", "scatter", "nll", "pow", "div"),
    "optimiser": ("_foreach", "addcmul", "addcdiv", "aten::mul_", "aten::add_", "sqrt"),
    "copies and layout": ("copy", "clone", "cat", "contiguous", "zero", "fill", "empty"),
}


def group_of(operator: str) -> str:
    """Which part of a step an operator belongs to."""
    return next((group for group, words in GROUPS.items() if any(word in operator.lower() for word in words)), "other")


def split(step: Callable[[], object], steps: int) -> dict[str, float]:
    """Seconds of a step, by part; what the operators take themselves, without those that they call."""
    step()
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        for _ in range(steps):
            step()
    parts = dict.fromkeys([*GROUPS, "other"], 0.0)
    for each in seen.key_averages():
        parts[group_of(each.key)] += each.self_cpu_time_total / 1e6 / steps
    return parts


def best_rate(kind: torch.dtype, size: int = 2048) -> float:
    """Floating-point operations a second of a square matrix product; the best of five."""
    left, right = torch.rand(2, size, size, dtype=kind)
    torch.matmul(left, right)
    seconds = []
    for _ in range(5):
        started = time.perf_counter()
        torch.matmul(left, right)
        seconds.append(time.perf_counter() - started)
    return 2 * size**3 / min(seconds)


def main(job_file: Path, steps: int) -> None:
    """Profile both and print them side by side."""
    torch.set_num_threads(1)
    job, device = load_job(job_file), torch.device("cpu")
    patch, batch = job.data.patch_voxels, job.training.batch_size
    way = usual_way(job, device)
    network = ready_network(job, device)
    after = RandomSteps(way.laid_out(network), patch, batch, device, way.precision, job.training)
    plain = Way("fp32", False).laid_out(ready_network(job, device))
    before = RandomSteps(plain, patch, batch, device, "fp32", job.training)
    for layer in before.network.modules():
        layer.__class__ = nn.PReLU if isinstance(layer, nn.PReLU) else type(layer)  # torch's own again
    monai = DiceCELoss(to_onehot_y=True, softmax=True)
    before.loss = lambda logits, labels: monai(logits, labels.long())
    with FlopCounterMode(display=False) as counter:
        before.step()
    operations = counter.get_total_flops()
    columns = {"before": split(before.step, steps), "after": split(after.step, steps)}
    totals = {name: sum(parts.values()) for name, parts in columns.items()}
    print(f"{'one step':24}{'before, ms':>14}{'after, ms':>14}{'share after':>14}")
    for part in columns["after"]:
        old, new = columns["before"][part], columns["after"][part]
        print(f"{part:24}{1000 * old:14.1f}{1000 * new:14.1f}{new / totals['after']:14.0%}")
    print(f"{'all':24}{1000 * totals['before']:14.1f}{1000 * totals['after']:14.1f}{'':>14}")
    print(f"ratio {totals['before'] / totals['after']:.2f}; {operations / 1e9:.1f} GFLOP a step")
    for name, precision in (("before", "fp32"), ("after", way.precision)):
        floor = operations / best_rate(torch.bfloat16 if precision == "bf16" else torch.float32)
        print(
            f"floor {name}: {1000 * floor:.1f} ms as a matrix product; the step takes {totals[name] / floor:.1f} x that"
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--job", type=Path, default=QUICK)
    parser.add_argument("--steps", type=int, default=5)
    options = parser.parse_args()
    main(options.job, options.steps)
