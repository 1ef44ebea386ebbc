"""Find a way to train a network within a memory budget."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from fl_app.config import Job
from fl_app.messages import Saving
from fl_app.networks.space.decoding import mebibytes
from fl_app.training.cost import prediction_memory, window_seconds
from fl_app.training.cost import training_memory as count_memory
from fl_app.training.precision import choose_precision
from fl_app.training.trainer import ready_network

LARGE_PATCH = 0.875  # of the sides: patches that are smaller do harm (docs/search.md)
# (early_update, patch_share, frozen_share), from what costs little to what costs much: smaller patches do more harm
# than weights that others train (docs/search.md)
_SAVINGS = (
    (False, 1.0, 0.0),
    *((True, 1.0, frozen) for frozen in (0.0, 0.25, 0.5, 0.625, 0.75)),
    *((True, 0.92, frozen) for frozen in (0.0, 0.25, 0.5)),
    *((True, LARGE_PATCH, frozen) for frozen in (0.0, 0.25, 0.5, 0.75, 0.9)),
    *((True, 0.75, frozen) for frozen in (0.5, 0.75, 0.9)),
    *((True, share, 0.9) for share in (0.625, 0.5, 0.375, 0.25)),
)
# bytes of a job's way of training, by what it is asked with: sites in one process, and widths with larger and smaller
# patches, ask for the same
_measured: dict[tuple[str, str, torch.device, int], int] = {}


@dataclass(frozen=True)
class Fit:
    """How a site can train a network, and predict with it.

    Attributes:
        job: the job with what it takes of ``training.recompute``, ``early_update``, ``patch_share``, ``frozen_share``,
            and of ``evaluation.windows_at_once``, ``window_voxels``.
        network: with its initial weights, ready for that.
        memory_bytes: what training takes; what prediction takes, if that is above the budget.
        fits: whether that is within the budget; if not, this is the least.
    """

    job: Job
    network: nn.Module
    memory_bytes: int
    fits: bool

    @property
    def saving(self) -> Saving:
        """What is done to save memory."""
        training = self.job.training
        return Saving(
            recompute=training.recompute,
            early_update=training.early_update,
            patch_share=training.patch_share,
            frozen_share=training.frozen_share,
            window_voxels=self.job.evaluation.window_voxels,
        )

    @property
    def words(self) -> str:
        """What it takes, and how."""
        return ", ".join(filter(None, [mebibytes(self.memory_bytes), self.saving.words]))


def fit_training(job: Job, device: torch.device, budget: float, architecture: str = "", processes: int = 1) -> Fit:
    """The quickest way to train a network that a budget holds, or the one that takes least; they are tried for a step.

    Args:
        job: the job.
        device: where to train.
        budget: bytes.
        architecture: what the job's search has found, as JSON; empty: the job's own network.
        processes: that take the steps together, each with a share of the batch and a budget of its own.
    """

    def tried(way: Job) -> Fit:
        network = ready_network(way, device, architecture).cpu()  # a copy of it is tried on the device
        try:
            asked = way.model_dump_json(), architecture, device, processes
            if asked not in _measured:
                _measured[asked] = training_memory(network, way, device, processes)
            taken = _measured[asked]
        except torch.OutOfMemoryError:
            torch.cuda.empty_cache()
            taken = torch.cuda.get_device_properties(device).total_memory
            return Fit(way, network, taken, False)
        way, taken = with_windows(network, way, device, budget, taken)
        return Fit(way, network, taken, taken <= budget)

    first, *others = ways_to_save(job, architecture, processes)
    found = tried(first)
    if found.fits or not others:
        return found
    least = tried(others[-1])
    if not least.fits:
        return least
    return next((better for way in others[:-1] if (better := tried(way)).fits), least)


def with_windows(network: nn.Module, job: Job, device: torch.device, budget: float, training: int) -> tuple[Job, int]:
    """The job with the windows that a budget holds, and the bytes that count: those of training, or of prediction if
    that alone is above the budget. Arguments as for `fit_windows`; ``training`` is what that takes.
    """
    if training > budget:
        return job, training
    way, predicting = fit_windows(network, job, device, budget)
    return way, training if predicting <= budget else predicting


def fit_windows(network: nn.Module, job: Job, device: torch.device, budget: float) -> tuple[Job, int]:
    """The job with the largest windows that a budget holds in prediction, else with the smallest; and what they take.

    Args:
        network: as it is trained.
        job: as the site trains it.
        device: where to predict.
        budget: bytes.
    """
    asked = job.evaluation
    windows = [(1, None if window == job.data.patch_voxels else window) for window in job.smaller_windows()]
    for at_once, window in [(asked.windows_at_once, asked.window_voxels), *windows]:
        evaluation = asked.model_copy(update={"windows_at_once": at_once, "window_voxels": window})
        way = job.model_copy(update={"evaluation": evaluation})
        taken = _predicting(network, way, device)
        if taken <= budget:
            break
    return way, taken


def _predicting(network: nn.Module, job: Job, device: torch.device) -> int:
    at_once = job.evaluation.windows_at_once
    windows = at_once if device.type == "cuda" else 1
    precision = choose_precision(job.training.precision, device)
    try:
        return prediction_memory(network, job.window, windows, device, precision, keep_weights=at_once > 1)
    except torch.OutOfMemoryError:
        torch.cuda.empty_cache()
        return int(torch.cuda.get_device_properties(device).total_memory)


def too_large(fit: Fit, budget: float) -> str:
    """Why a site cannot train a job's network, and what to do."""
    return (
        f"memory_budget_gib: training the job's network takes {mebibytes(fit.memory_bytes)} at least, and the budget "
        f"is {mebibytes(budget)} - raise it, or let the lead set search.strategy: width, so that this site trains a "
        "part of the network"
    )


def is_quick(network: nn.Module, job: Job, device: torch.device, longest: float | None) -> bool:
    """Whether a network predicts a window of the job within so many seconds; none: it may take any time."""
    precision = choose_precision(job.training.precision, device)
    return longest is None or window_seconds(network, job.data.patch_voxels, device, precision) <= longest


def training_memory(network: nn.Module, job: Job, device: torch.device, processes: int = 1) -> int:
    """The most bytes that training a network holds at one time, with the job's patches, loss and optimiser.

    On a GPU what torch allocates; on a CPU all tensors, without the work space of operators. Of several processes: what
    each holds.
    """
    found = count_memory(
        network,
        job.training_patch,
        -(-job.training.batch_size // processes),
        device,
        choose_precision(job.training.precision, device),
        job.training,
        job.pulls,
    )
    # DistributedDataParallel sums copies of the gradients up
    return found.peak + (found.gradients if processes > 1 else 0)


def ways_to_save(job: Job, architecture: str = "", processes: int = 1) -> list[Job]:
    """The job as it is, and with settings that take less memory and more time, one after the other.

    Several processes sum all gradients up before the weights are updated, so they keep them.
    """
    if processes > 1:
        job = with_training(job, early_update=False)
    settings, again = job.training, job.network.normalisation != "batch"
    # networks that differ by site share by what they hold, not by what they train; krum compares whole updates
    whole = bool(architecture) or "krum" in job.federation.aggregator
    ways, known = [job], set()
    for early, patch_share, frozen_share in _SAVINGS:
        early = (settings.early_update or early) and processes == 1
        patch = min(settings.patch_share, max(patch_share, settings.least_patch_share))
        frozen = max(settings.frozen_share, min(frozen_share, settings.most_frozen_share))
        # a smaller patch holds an organ less often: half of those that would be drawn anywhere are centred on one
        centred = (1 + settings.foreground_share) / 2 if patch < settings.patch_share else settings.foreground_share
        way = with_training(
            job,
            recompute=again,
            early_update=early,
            patch_share=patch,
            foreground_share=centred,
            frozen_share=settings.frozen_share if whole else frozen,
        )
        right = way.training_patch == job.training_patch or way.trains_on(way.training_patch)
        key = early, way.training_patch, way.training.frozen_share
        if right and way != job and key not in known:
            ways.append(way)
            known.add(key)
    return ways


def with_training(job: Job, **settings: object) -> Job:
    """The same job with other settings of ``training``."""
    return job.model_copy(update={"training": job.training.model_copy(update=settings)})
