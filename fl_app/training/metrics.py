"""Scores of a predicted label map against the true one, per organ, and their means over cases."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from monai.metrics.surface_dice import compute_surface_dice


@dataclass(frozen=True)
class CaseScore:
    """One case's scores; it never leaves the site.

    Attributes:
        case: the case's name.
        dice: for each organ 0..1, or NaN where neither truth nor prediction holds the organ.
        surface_dice: likewise, the normalised surface distance; None where it was not asked for.
    """

    case: str
    dice: dict[str, float]
    surface_dice: dict[str, float] | None = None


@dataclass(frozen=True)
class Summary:
    """Mean, spread (population standard deviation) and number of values that are not NaN."""

    mean: float
    std: float
    count: int

    @classmethod
    def of(cls, values: Iterable[float]) -> Summary:
        """Summarise; the mean of nothing is NaN."""
        known = [value for value in values if not math.isnan(value)]
        if not known:
            return cls(math.nan, math.nan, 0)
        mean = math.fsum(known) / len(known)
        return cls(mean, math.sqrt(math.fsum((value - mean) ** 2 for value in known) / len(known)), len(known))


def dice(predicted: torch.Tensor, truth: torch.Tensor, organs: Sequence[str]) -> dict[str, float]:
    """Dice's coefficient 2|A and B| / (|A| + |B|) of each organ (Dice, Ecology 1945).

    Args:
        predicted: integer label map, organs numbered from 1.
        truth: likewise, of the same shape.
        organs: their names in that order.

    Returns:
        0..1 by organ; NaN where both are empty, as nnU-Net scores such cases.
    """
    scores = {}
    for number, organ in enumerate(organs, start=1):
        found, wanted = predicted == number, truth == number
        size = int(found.sum()) + int(wanted.sum())
        scores[organ] = 2 * int((found & wanted).sum()) / size if size else math.nan
    return scores


def surface_dice(
    predicted: torch.Tensor,
    truth: torch.Tensor,
    organs: Sequence[str],
    spacing_mm: Sequence[float],
    tolerance_mm: float,
) -> dict[str, float]:
    """Normalised surface distance of each organ: the share of both surfaces within a tolerance of the other.

    Nikolov et al., J Med Internet Res 2021, by MONAI's `compute_surface_dice`; the surfaces are voxel edges.

    Args:
        predicted: label map (x, y, z), organs numbered from 1.
        truth: likewise.
        organs: their names in that order.
        spacing_mm: voxel size.
        tolerance_mm: how far apart surfaces may be to count as the same.

    Returns:
        0..1 by organ; NaN where both are empty, 0 where one is.
    """
    scores = {}
    for number, organ in enumerate(organs, start=1):
        found, wanted = predicted == number, truth == number
        if not found.any() or not wanted.any():
            scores[organ] = 0.0 if found.any() or wanted.any() else math.nan
            continue
        # distances are needed near the organ only
        box = bounding_box(found | wanted)
        one_hot = [torch.stack([~mask[box], mask[box]])[None].float() for mask in (found, wanted)]
        value = compute_surface_dice(
            one_hot[0],
            one_hot[1],
            class_thresholds=[tolerance_mm],
            spacing=[float(size) for size in spacing_mm],
        )
        scores[organ] = float(value)
    return scores


def bounding_box(mask: torch.Tensor) -> tuple[slice, ...]:
    """The smallest box around a mask, two voxels wider where the volume allows."""
    places = torch.nonzero(mask)
    low, high = places.amin(0) - 2, places.amax(0) + 3
    return tuple(slice(max(int(start), 0), int(stop)) for start, stop in zip(low, high, strict=True))
