"""Training steps and inference on a GPU, all precisions and layouts: one command, under eight minutes, a table as JSON.

    .venv/bin/python -m benchmarks.gpu [--json gpu.json]

Needs the source checkout and the Python packages only. The alternative is fp32 with TF32 off in ordinary memory. The
share of the peak is what the convolutions achieve (forward pass counted by torch, times three for the step) over what a
large matrix product achieves on the same device in the same precision. What the time does not suffice for is named.
``--device cpu --patches 32 --batches 1`` tries the command itself where there is no GPU.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.timing import machine
from fl_app.config import Job
from fl_app.networks.registry import build_network
from fl_app.training.cost import forward_flops
from fl_app.training.evaluation import predict
from fl_app.training.layers import adapt_layers
from fl_app.training.precision import MixedPrecision, Name
from fl_app.training.step import RandomSteps
from fl_app.training.trial import Way, timed

SECONDS = 420  # no row is begun after this long
STEPS = 8


@dataclass(frozen=True)
class Variant:
    """A way to compute, with TF32 on or off for what is left in fp32, compiled or not."""

    way: Way
    tf32: bool = True
    compiled: bool = False

    def __str__(self) -> str:
        extras = (", TF32 on" if self.tf32 else ", TF32 off") if self.way.precision == "fp32" else ""
        return f"{self.way}{extras}{', compiled' if self.compiled else ''}"


BASE = Variant(Way("fp32", False), tf32=False)


def variants(device: torch.device) -> Iterator[Variant]:
    """The alternative first; compiled ones last, since they take longest to begin."""
    halves: tuple[Name, ...] = ("bf16", "fp16") if device.type == "cuda" else ("bf16",)
    yield BASE
    for precision in ("fp32", *halves):
        for layout in (False, True):
            yield Variant(Way(precision, layout))
    for precision in halves:
        yield Variant(Way(precision, precision == "bf16"), compiled=True)


def use_tf32(on: bool) -> None:
    """For convolutions and matrix products."""
    torch.backends.cudnn.allow_tf32 = on
    torch.backends.cuda.matmul.allow_tf32 = on


def peak_flops(variant: Variant, device: torch.device) -> float:
    """Operations a second of a large matrix product."""
    kind = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[variant.way.precision]
    side = 8192 if device.type == "cuda" else 512
    first, second = (torch.randn(side, side, device=device).to(kind) for _ in range(2))
    use_tf32(variant.tf32)
    for repeat in range(12):
        if repeat == 2:
            synchronise(device)
            started = time.perf_counter()
        first @ second
    synchronise(device)
    return 10 * 2 * side**3 / (time.perf_counter() - started)


def synchronise(device: torch.device) -> None:
    """Wait until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def training_row(name: str, patch: int, batch: int, variant: Variant, device: torch.device) -> dict[str, float]:
    """Seconds of a step, operations a second, and the memory that torch took at most."""
    job = job_of(name, patch)
    network = variant.way.laid_out(adapt_layers(build_network(job)).to(device))
    flops = 3 * forward_flops(network, job.data.patch_voxels, batch)
    if variant.compiled:
        network.compile()
    use_tf32(variant.tf32)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    steps = RandomSteps(network, job.data.patch_voxels, batch, device, variant.way.precision, job.training)
    for _ in range(3):
        steps.step()
    seconds = statistics.median(timed(steps, device) for _ in range(STEPS))
    memory = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0
    return {"seconds": seconds, "flops_per_second": flops / seconds, "peak_memory_bytes": memory}


def inference_row(patch: int, variant: Variant, device: torch.device) -> dict[str, float]:
    """Seconds for one prepared CT by sliding windows, as a validation takes them."""
    job = job_of("unet", patch)
    network = variant.way.laid_out(adapt_layers(build_network(job)).to(device))
    image = torch.rand(1, *(3 * patch, 3 * patch, 2 * patch))
    precision = MixedPrecision(variant.way.precision, device)
    use_tf32(variant.tf32)
    taken = []
    for _ in range(3):
        started = time.perf_counter()
        predict(network, image, job, precision)
        synchronise(device)
        taken.append(time.perf_counter() - started)
    return {"seconds": statistics.median(taken[1:])}


def job_of(name: str, patch: int) -> Job:
    """A job with this network and patch."""
    return Job.model_validate({"data": {"patch_voxels": [patch] * 3}, "network": {"name": name}})


def main(options: argparse.Namespace) -> None:
    """All rows, the quick ones to begin with; ends in time."""
    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        sys.exit(
            "benchmarks.gpu: torch finds no CUDA GPU on this machine - run it on one that has a GPU and a CUDA torch"
        )
    ends = time.monotonic() + SECONDS
    every = list(variants(device))
    peaks = {str(variant): peak_flops(variant, device) for variant in every if not variant.compiled}
    rows: dict[str, dict[str, float]] = {}
    left_out: dict[str, str] = {}
    cases = [
        (name, patch, batch) for name in ("unet", "dynunet") for patch in options.patches for batch in options.batches
    ]
    plain = [variant for variant in every if not variant.compiled]
    compiled = [variant for variant in every if variant.compiled]
    work: list[tuple[tuple[str, int, int], Variant]] = [(case, variant) for variant in plain for case in cases]
    work += [(("", options.patches[0], 0), variant) for variant in plain]
    work += [(case, variant) for variant in compiled for case in cases]
    for (name, patch, batch), variant in work:
        group = f"{name} {patch}^3 batch {batch}" if name else f"inference {3 * patch} x {3 * patch} x {2 * patch}"
        if time.monotonic() > ends:
            left_out[f"{group}: {variant}"] = "no time left"
            continue
        try:
            row = training_row(name, patch, batch, variant, device) if name else inference_row(patch, variant, device)
        except (torch.OutOfMemoryError, RuntimeError) as error:
            left_out[f"{group}: {variant}"] = str(error).splitlines()[0]
            continue
        told = f"{1000 * row['seconds']:9.1f} ms"
        rows[f"{group}: {variant}"] = row
        if f"{group}: {BASE}" in rows:  # it may not have fitted
            row["times_sooner_than_fp32"] = rows[f"{group}: {BASE}"]["seconds"] / row["seconds"]
            told += f", {row['times_sooner_than_fp32']:5.2f} x sooner"
        if "flops_per_second" in row:
            row["share_of_peak"] = row["flops_per_second"] / peaks[str(Variant(variant.way, variant.tf32))]
            told += f", {100 * row['share_of_peak']:.0f} % of the peak"
        print(f"{group}: {variant!s:40} {told}", flush=True)
    for what, why in left_out.items():
        print(f"left out - {what}: {why}")
    if options.json:
        report = {"rows": rows, "matrix_product_flops_per_second": peaks, "left_out": left_out, "machine": machine()}
        options.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--patches", nargs="+", type=int, default=[96, 128])
    parser.add_argument("--batches", nargs="+", type=int, default=[2, 8])
    parser.add_argument("--json", type=Path)
    main(parser.parse_args())
