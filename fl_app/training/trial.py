"""The quickest way to take a job's training steps on a device, found by trying them out."""

from __future__ import annotations

import copy
import hashlib
import json
import logging
import resource
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import nn

from fl_app.config import Job
from fl_app.files import replacing
from fl_app.training.device import free_memory
from fl_app.training.precision import Name, choose_precision
from fl_app.training.replaying import may_replay
from fl_app.training.step import RandomSteps

# measured on CPUs (benchmarks/training_step.py), where MONAI's U-Net was the first to be faster in this layout
_CHANNELS_LAST, _ON_CPU = {"unet"}, {"dynunet", "segresnet"}
_FEWEST_STEPS = 2000  # of a whole training: a trial takes the time of some dozens, more where fp32 is slow
_ROUNDS = 3
_FAR_BEHIND = 1.5  # times the best after the first round: not tried again

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Way:
    """How to compute.

    Attributes:
        precision: bf16, fp16 or fp32.
        channels_last: whether a voxel's channels lie next to each other in memory (torch.channels_last_3d), rather
            than a channel's voxels.
        replayed: whether a GPU gets a training step's passes as CUDA graphs.
    """

    precision: Name
    channels_last: bool
    replayed: bool = False

    def __str__(self) -> str:
        layout = "channels last" if self.channels_last else "contiguous"
        return f"{self.precision}, {layout}{', replayed' if self.replayed else ''}"

    def laid_out(self, network: nn.Module) -> nn.Module:
        """The network with its weights in this layout, in place; what it computes follows."""
        layout = torch.channels_last_3d if self.channels_last else torch.contiguous_format
        return network.to(memory_format=layout)  # type: ignore[call-overload]


def usual_way(job: Job, device: torch.device) -> Way:
    """By rule, the same on all machines of a kind."""
    name = job.network.name
    last = name in _CHANNELS_LAST or (device.type == "cpu" and name in _ON_CPU)
    return Way(choose_precision(job.training.precision, device), last)


def quickest_way(
    job: Job, network: nn.Module, device: torch.device, memory: Path | None, budgeted: bool = False
) -> tuple[Way, dict[str, float]]:
    """The way whose training steps take the least time, and the seconds of each way that was tried.

    A deterministic job computes in the usual way, since a clock never shows the same twice; so does one too short for a
    trial to pay, and one with a search or a memory budget, which are counted in that way. torch.compile is not tried:
    compiling takes longer than the whole trial. Ways are tried kernel by kernel; where a GPU can replay the passes, the
    chosen way does.

    Args:
        job: its precision, patch, batch, loss and optimiser are what is tried.
        network: the job's network; it stays as it is.
        device: where.
        memory: folder in which the outcome is kept for the next job of this kind; none: it is not kept.
        budgeted: whether the site has a memory budget.
    """
    usual = usual_way(job, device)
    if job.training.deterministic or job.search.wanted or budgeted:
        return usual, {}
    replayed = may_replay(job, device)
    if job.federation.rounds * job.training.steps_per_round < _FEWEST_STEPS:
        return replace(usual, replayed=replayed), {}
    path = memory / f"way-{_kind(job, network, device)}.json" if memory else None
    seconds = _recall(path)
    if not seconds:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            seconds = {way: statistics.median(taken) for way, taken in _try_out(job, network, device, usual).items()}
        if path and seconds:
            with replacing(path) as temporary:
                temporary.write_text(json.dumps([asdict(way) | {"seconds": taken} for way, taken in seconds.items()]))
    best = min(seconds, key=lambda way: seconds[way], default=usual)
    return replace(best, replayed=replayed), {str(way): seconds[way] for way in seconds}


def _try_out(job: Job, network: nn.Module, device: torch.device, usual: Way) -> dict[Way, list[float]]:
    """Seconds of the steps of each way, taken in turns; a way that the memory is too small for is left out."""
    taken: dict[Way, list[float]] = {}
    steps: dict[Way, RandomSteps] = {}
    before = _highest_memory()
    for way in _ways(job, device, usual):
        grown = _highest_memory() - before
        # a CPU's memory that runs out ends the process: fp32 takes up to twice what the usual way took
        if device.type == "cpu" and steps and free_memory(device) < 3 * grown:
            continue
        try:
            steps[way] = _steps(job, way.laid_out(copy.deepcopy(network)), device, way)
            steps[way].step()  # what torch sets up at the first step is not counted
            taken[way] = [timed(steps[way].step, device)]
        except torch.OutOfMemoryError:
            _logger.info(f"too little memory for {way}")
            torch.cuda.empty_cache()
    for _ in range(_ROUNDS - 1):
        best = min((min(each) for each in taken.values()), default=0.0)
        for way in [way for way in taken if min(taken[way]) <= _FAR_BEHIND * best]:
            taken[way].append(timed(steps[way].step, device))
    return taken


def _ways(job: Job, device: torch.device, usual: Way) -> list[Way]:
    """All ways that a device and a job allow; the usual one first."""
    wanted = job.training.precision
    precisions: tuple[Name, ...] = (usual.precision,)
    if wanted == "auto":
        half: tuple[Name, ...] = ("bf16", "fp16") if device.type == "cuda" else ("bf16",)
        fast = half if usual.precision != "fp32" else ()
        precisions = (*fast, "fp32")
    every = [Way(precision, layout) for precision in precisions for layout in (True, False)]
    return [usual, *(way for way in every if way != usual)]


def _steps(job: Job, network: nn.Module, device: torch.device, way: Way) -> RandomSteps:
    training, patch = job.training, job.training_patch
    return RandomSteps(network, patch, training.batch_size, device, way.precision, training)


def timed(call: Callable[[], object], device: torch.device) -> float:
    """Seconds of one call, such as a training step.

    Wall time on a GPU; on a CPU processor time, which other work there changes little.
    """
    if device.type != "cuda":
        started = time.process_time()
        call()
        return time.process_time() - started
    torch.cuda.synchronize(device)
    started = time.perf_counter()
    call()
    torch.cuda.synchronize(device)
    return time.perf_counter() - started


def _highest_memory() -> int:
    """Bytes that this process has held at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _kind(job: Job, network: nn.Module, device: torch.device) -> str:
    """The same for jobs whose steps take the same time here."""
    shapes = [list(value.shape) for value in network.parameters()]
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu {torch.get_num_threads()}"
    facts = [
        job.network.model_dump(mode="json"),
        shapes,
        job.training_patch,
        job.training.model_dump(mode="json", include={"loss", "optimizer", "batch_size", "precision", "recompute"}),
        name,
        torch.__version__,
    ]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:32]


def _recall(path: Path | None) -> Mapping[Way, float]:
    """What an earlier trial found; nothing if there was none, or if its file is damaged."""
    if path is None:
        return {}
    try:
        held = json.loads(path.read_text())
        return {Way(each["precision"], bool(each["channels_last"])): float(each["seconds"]) for each in held}
    except (OSError, ValueError, KeyError, TypeError):
        return {}
