"""Spacing and patch by nnU-Net's rules, from what the sites' images have in common."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fl_app.config import plan_unet

_ANISOTROPIC = 3.0  # an axis so many times coarser than the others, and with so many times fewer voxels
_WIDTH, _WIDEST = 32, 320  # feature maps of nnU-Net's outermost and widest level
_CLASSES = 2
# feature values of one patch that nnU-Net fits into 8 GB at two patches a step
_REFERENCE_VALUES, _REFERENCE_BYTES = 560_000_000, 8_000_000_000


@dataclass(frozen=True)
class PooledStatistics:
    """What the sites' images have in common, along three axes.

    Attributes:
        shape_voxels: median shape.
        spacing_mm: median voxel size.
        fine_spacing_mm: tenth percentile of the voxel size.
    """

    shape_voxels: tuple[float, ...]
    spacing_mm: tuple[float, ...]
    fine_spacing_mm: tuple[float, ...]


@dataclass(frozen=True)
class Proposal:
    """What a job could set as ``data.spacing_mm`` and ``data.patch_voxels``."""

    spacing_mm: tuple[float, ...]
    patch_voxels: tuple[int, ...]


def propose_plan(statistics: PooledStatistics, memory_limit: int = _REFERENCE_BYTES) -> Proposal:
    """Spacing and patch that nnU-Net version 2 plans (Isensee et al., Nature Methods 2021).

    The spacing is the median; of an axis more than three times coarser and smaller than the others, the tenth
    percentile. The patch begins with the aspect of equal sides in mm and 256^3 voxels, no larger than the median
    image; the side that is largest relative to that image shrinks until two patches fit the memory.

    Args:
        statistics: of all sites together.
        memory_limit: bytes of the smallest site's device.
    """
    spacing = _target_spacing(statistics)
    image = np.array(statistics.shape_voxels) * np.array(statistics.spacing_mm) / spacing
    aspect = 1 / spacing
    patch = np.minimum(np.round(aspect * (256**3 / aspect.prod()) ** (1 / 3)), np.round(image)).astype(int)
    patch = _padded(patch, spacing)
    limit = _REFERENCE_VALUES * memory_limit / _REFERENCE_BYTES
    while _feature_values(patch, spacing) > limit and max(patch) > 16:
        axis = int(np.argsort(patch / image)[-1])
        # a shorter side may divide by less: take no more off it than its own multiple
        shorter = patch.copy()
        shorter[axis] -= plan_unet(patch.tolist(), spacing.tolist()).multiples[axis]
        patch[axis] -= plan_unet(shorter.tolist(), spacing.tolist()).multiples[axis]
        patch = _padded(patch, spacing)
    return Proposal(tuple(spacing.tolist()), tuple(patch.tolist()))


def _target_spacing(statistics: PooledStatistics) -> np.ndarray:
    spacing, shape = np.array(statistics.spacing_mm, dtype=float), np.array(statistics.shape_voxels)
    coarsest = int(spacing.argmax())
    others = np.arange(len(spacing)) != coarsest
    if (
        spacing[coarsest] > _ANISOTROPIC * spacing[others].max()
        and shape[coarsest] * _ANISOTROPIC < shape[others].min()
    ):
        spacing[coarsest] = max(statistics.fine_spacing_mm[coarsest], spacing[others].max())
    return spacing


def _padded(patch: np.ndarray, spacing: np.ndarray) -> np.ndarray:
    multiples = np.array(plan_unet(patch.tolist(), spacing.tolist()).multiples)
    return -(-patch // multiples) * multiples


def _feature_values(patch: np.ndarray, spacing: np.ndarray) -> int:
    """Values of all convolutions' outputs: two a level on the way down, two and a transposed one on the way up."""
    sides, values = patch.copy(), 0
    strides = plan_unet(patch.tolist(), spacing.tolist()).strides
    for level, stride in enumerate(strides):
        sides = sides // np.array(stride)
        maps = min(_WIDTH * 2**level, _WIDEST)
        values += maps * int(sides.prod()) * (2 if level == len(strides) - 1 else 5)
    return values + _CLASSES * int(patch.prod())
