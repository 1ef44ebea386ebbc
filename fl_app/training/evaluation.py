"""Predict whole volumes window by window, and score them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from monai.data.meta_tensor import MetaTensor
from torch import nn

from fl_app.config import Job
from fl_app.data.grid import Grid, slab_ranges
from fl_app.data.preparation import PreparedCase, load_label
from fl_app.data.resampling import resample_box
from fl_app.training.metrics import CaseScore, dice, surface_dice
from fl_app.training.precision import MixedPrecision
from fl_app.training.windows import Windows

_NOTHING = 1e-6  # of a probability


def predict(network: nn.Module, image: torch.Tensor, job: Job, precision: MixedPrecision) -> torch.Tensor:
    """Probabilities (1 + organs, x, y, z) float32 for a prepared image (1, x, y, z), where the windows' sums are."""
    network.eval()
    x, y, z = image.shape[1:]
    windows, whole = Windows((x, y, z), 2, job), (slice(0, x), slice(0, y), slice(0, z))
    found = torch.empty(1 + len(job.data.labels), x, y, z, device=windows.sums_on(precision))
    for start, planes in windows.predict(network, (), lambda box: image[(slice(None), *box)], precision, whole):
        found[..., start : start + planes.shape[3]] = planes
    return found


def score_prepared(
    network: nn.Module, cases: Sequence[PreparedCase], job: Job, precision: MixedPrecision
) -> list[CaseScore]:
    """Dice of each case on the job's grid: quick, for choosing the best model."""
    scores = []
    for case in cases:
        predicted = predict(network, case.image, job, precision).argmax(0).to(case.label.device)
        scores.append(CaseScore(case.name, dice(predicted, case.label[0], tuple(job.data.labels))))
    return scores


def score_native(
    network: nn.Module, cases: Sequence[PreparedCase], job: Job, precision: MixedPrecision
) -> list[CaseScore]:
    """Dice and normalised surface distance of each case on the grid that its annotator drew on: for the final test."""
    organs = tuple(job.data.labels)
    scores = []
    for case in cases:
        assert case.source.label is not None  # a case without a label does not pass the data check
        truth = load_label(case.source.label, job.data)
        probabilities = predict(network, case.image, job, precision).cpu()
        predicted = to_native_grid(probabilities, case.affine, truth)
        spacing = truth.pixdim.tolist()
        labels = truth.as_tensor()[0]
        tolerance = job.evaluation.surface_tolerance_mm
        scores.append(
            CaseScore(
                case.name,
                dice(predicted, labels, organs),
                surface_dice(predicted, labels, organs, spacing, tolerance),
            )
        )
    return scores


def to_native_grid(probabilities: torch.Tensor, affine: torch.Tensor, native: MetaTensor) -> torch.Tensor:
    """The label map (x, y, z) uint8 on ``native``'s grid, by linear interpolation of the probabilities.

    Args:
        probabilities: (channels, x, y, z) on the prepared grid.
        affine: (4, 4) of the prepared grid, voxel to mm in RAS.
        native: a volume (1, x, y, z) on the wanted grid.
    """
    _, x, y, z = probabilities.shape
    found = torch.empty(native.shape[1:], dtype=torch.uint8)
    held, own = Grid((x, y, z), affine.numpy()), Grid((*found.shape,), native.affine.numpy())
    for start, stop in slab_ranges(own.shape, x * y * z, len(probabilities)):
        slab = own.slab(0, start, stop)
        background, *organs = resample_box(
            held, lambda box: probabilities[(slice(None), *box)].numpy(), own.box(slab), "zeros"
        )
        found[slab] = most_probable(background, organs)
    return found


def most_probable(background: torch.Tensor, organs: Sequence[torch.Tensor]) -> torch.Tensor:
    """The label map (x, y, z) uint8 of resampled probabilities; outside their grid, where all are 0, background."""
    best, labels = background, torch.zeros_like(background, dtype=torch.uint8)
    for number, organ in enumerate(organs, start=1):
        labels.masked_fill_(organ > best, number)
        best = torch.maximum(best, organ)
    # of points that lie outside there may be 1e-16 of something, and rounding would decide
    return labels.masked_fill_(best < _NOTHING, 0)
