"""Training steps and inference on a GPU, beside MONAI's in plain PyTorch: one command, under eight minutes.

    .venv/bin/python -m benchmarks.gpu [--json gpu.json]

Needs the source checkout and the Python packages only. The alternatives are the same network as MONAI builds it, with
its `DiceCELoss` and `Novograd`, in fp32 without and with TF32 and with AMP (fp16, scaled gradients), and its
`sliding_window_inference`; in each the fastest memory layout is up to PyTorch. Ours are the ways that a site tries,
replayed as CUDA graphs as a site does. The share of the peak is what the convolutions achieve (forward pass counted by
torch, times three for the step) over what a large matrix product achieves on the same device in the same precision.
What the time does not suffice for is named.
``--device cpu --patches 32 --batches 1`` tries the command itself where there is no GPU.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from monai.inferers.utils import sliding_window_inference
from monai.losses.dice import DiceCELoss
from monai.optimizers.novograd import Novograd
from torch import nn

from benchmarks.timing import machine
from fl_app.config import Job
from fl_app.networks.registry import build_network
from fl_app.training.adapting import adapt_layers
from fl_app.training.cost import forward_flops
from fl_app.training.evaluation import predict
from fl_app.training.precision import MixedPrecision, Name
from fl_app.training.replaying import may_replay, replay
from fl_app.training.step import RandomSteps
from fl_app.training.trial import Way, timed

STEPS, ENOUGH_SECONDS = 10, 2.0  # that are timed, and after which no more are
NETWORKS = ("unet", "dynunet")
KINDS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Variant:
    """A way to compute; MONAI's in plain PyTorch, or ours.

    Attributes:
        way: precision and layout.
        tf32: whether what is in fp32 may use TF32.
        plain: whether it is MONAI's.
    """

    way: Way
    tf32: bool = True
    plain: bool = False

    def __str__(self) -> str:
        if not self.plain:
            return f"fedspleen, {self.way}"
        if self.way.precision == "fp32":
            return f"MONAI, fp32, TF32 {'on' if self.tf32 else 'off'}"
        return f"MONAI, AMP {self.way.precision}"


FP32, TF32 = (Variant(Way("fp32", False), tf32, plain=True) for tf32 in (False, True))


def variants(device: torch.device) -> Iterator[Variant]:
    """The alternatives first."""
    amp: Name = "fp16" if device.type == "cuda" else "bf16"
    yield from (FP32, TF32, Variant(Way(amp, False), plain=True))
    for precision in ("bf16", "fp16", "fp32") if device.type == "cuda" else ("bf16", "fp32"):
        for layout in (True, False):
            yield Variant(Way(precision, layout, device.type == "cuda"))


class PlainSteps:
    """Training steps as MONAI's fast training tutorial takes them, on random patches."""

    def __init__(self, network: nn.Module, patch: tuple[int, ...], batch: int, device: torch.device, precision: Name):
        self._network, self._device = network.train(), device
        self._loss = DiceCELoss(to_onehot_y=True, softmax=True, squared_pred=True, batch=True)
        self._optimizer = Novograd(network.parameters(), 2e-3)
        self._scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16")
        self._precision = precision
        self._images = torch.rand(batch, 1, *patch, device=device)

    def step(self) -> None:
        """One step."""
        labels = torch.randint(0, 2, self._images.shape, device=self._device)
        self._optimizer.zero_grad()
        with plain_autocast(self._precision, self._device):
            loss = self._loss(self._network(self._images), labels)
        self._scaler.scale(loss).backward()
        self._scaler.step(self._optimizer)
        self._scaler.update()


def plain_autocast(precision: Name, device: torch.device) -> torch.autocast:
    """PyTorch's, which does nothing in fp32."""
    return torch.autocast(device.type, KINDS[precision], enabled=precision != "fp32")


def use_tf32(on: bool) -> None:
    """For convolutions and matrix products."""
    torch.backends.cudnn.allow_tf32 = on
    torch.backends.cuda.matmul.allow_tf32 = on


def peak_flops(variant: Variant, device: torch.device) -> float:
    """Operations a second of a large matrix product."""
    side = 8192 if device.type == "cuda" else 512
    first, second = (torch.randn(side, side, device=device).to(KINDS[variant.way.precision]) for _ in range(2))
    use_tf32(variant.tf32)
    return 10 * 2 * side**3 / median_seconds(lambda: [first @ second for _ in range(10)], device)


def median_seconds(call: Callable[[], object], device: torch.device) -> float:
    """Of one call, after three to warm up; fewer are timed where they take long."""
    for _ in range(3):
        call()
    taken: list[float] = []
    while len(taken) < 3 or (len(taken) < STEPS and sum(taken) < ENOUGH_SECONDS):
        taken.append(timed(call, device))
    return statistics.median(taken)


def training_row(name: str, patch: int, batch: int, variant: Variant, device: torch.device) -> dict[str, float]:
    """Seconds of a step, operations a second, and the memory that torch took at most."""
    job = job_of(name, patch)
    network = build_network(job).to(device)
    flops = 3 * forward_flops(network, job.data.patch_voxels, batch)
    use_tf32(variant.tf32)
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    if variant.plain:
        plain = PlainSteps(network, job.data.patch_voxels, batch, device, variant.way.precision)
        seconds = median_seconds(plain.step, device)
    else:
        network = variant.way.laid_out(adapt_layers(network))
        steps = RandomSteps(network, job.data.patch_voxels, batch, device, variant.way.precision, job.training)
        if variant.way.replayed and may_replay(job, device):
            replay(steps.network, steps.images, MixedPrecision(variant.way.precision, device))
        seconds = median_seconds(steps.step, device)
    memory = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0
    return {"seconds": seconds, "flops_per_second": flops / seconds, "peak_memory_bytes": memory}


def inference_row(patch: int, variant: Variant, device: torch.device) -> dict[str, float]:
    """Seconds for one prepared CT by sliding windows: ours as a validation takes them, MONAI's with overlap 0.5."""
    job = job_of("unet", patch)
    network, image = build_network(job).to(device).eval(), torch.rand(1, 3 * patch, 3 * patch, 2 * patch, device=device)
    use_tf32(variant.tf32)
    if variant.plain:

        def call() -> object:
            with torch.no_grad(), plain_autocast(variant.way.precision, device):
                found = sliding_window_inference(image[None], job.window, 4, network, 0.5, mode="gaussian")
                return found.argmax(1)
    else:
        network = variant.way.laid_out(adapt_layers(network))
        precision = MixedPrecision(variant.way.precision, device)

        def call() -> object:
            return predict(network, image, job, precision).argmax(0)

    return {"seconds": median_seconds(call, device)}


def job_of(name: str, patch: int) -> Job:
    """A job with this network and patch, whose windows overlap by half, as MONAI's are asked to."""
    settings = {"data": {"patch_voxels": [patch] * 3}, "network": {"name": name}, "evaluation": {"overlap": 0.5}}
    return Job.model_validate(settings)


def main(options: argparse.Namespace) -> None:
    """All rows, the quick ones to begin with; ends in time."""
    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        sys.exit(
            "benchmarks.gpu: torch finds no CUDA GPU on this machine - run it on one that has a GPU and a CUDA torch"
        )
    ends = time.monotonic() + options.seconds
    every = list(variants(device))
    peaks = {(each.way.precision, each.tf32): peak_flops(each, device) for each in every}
    rows: dict[str, dict[str, float]] = {}
    left_out: dict[str, str] = {}
    # a DynUNet takes five times as long: its largest case is left for the end
    cases = [(name, patch, batch) for patch in options.patches for batch in options.batches for name in NETWORKS]
    cases.sort(key=lambda case: (5 if case[0] == "dynunet" else 1) * case[1] ** 3 * case[2])
    for (name, patch, batch), variant in [
        *((("", options.patches[0], 0), variant) for variant in every),
        *((case, variant) for case in cases for variant in every),
    ]:
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
        for base, short in ((FP32, "fp32"), (TF32, "tf32")):
            if f"{group}: {base}" in rows:  # it may not have fitted
                row[f"times_sooner_than_{short}"] = rows[f"{group}: {base}"]["seconds"] / row["seconds"]
                told += f", {row[f'times_sooner_than_{short}']:5.2f} x {short}"
        if "flops_per_second" in row:
            row["share_of_peak"] = row["flops_per_second"] / peaks[variant.way.precision, variant.tf32]
            told += f", {100 * row['share_of_peak']:.1f} % of the peak"
        print(f"{group}: {variant!s:42} {told}", flush=True)
    for what, why in left_out.items():
        print(f"left out - {what}: {why}")
    if options.json:
        measured = {f"{precision}, TF32 {tf32}": each for (precision, tf32), each in peaks.items()}
        report = {"rows": rows, "matrix_product_flops": measured, "left_out": left_out, "machine": machine()}
        options.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--patches", nargs="+", type=int, default=[96, 128])
    parser.add_argument("--batches", nargs="+", type=int, default=[2, 8])
    parser.add_argument("--seconds", type=float, default=420, help="no row is begun after so long")
    parser.add_argument("--json", type=Path)
    main(parser.parse_args())
