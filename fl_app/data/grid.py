"""Where a volume's voxels lie, and which parts of it a step works on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import nibabel
import numpy as np
import torch
from monai.data.meta_tensor import MetaTensor
from monai.transforms import Spacing

from fl_app.data.geometry import FloatArray

SLAB_VOXELS = 2**21  # of one step: some 50 MB while it is resampled
Box = tuple[slice, slice, slice]


@dataclass(frozen=True)
class Grid:
    """Where the voxels of a volume lie.

    Attributes:
        shape: voxels along x, y, z.
        affine: (4, 4) float64, voxel to mm in RAS+.
    """

    shape: tuple[int, int, int]
    affine: FloatArray

    def part(self, start: Sequence[int], stop: Sequence[int]) -> Grid:
        """The grid of the voxels from ``start`` to ``stop`` (excluded)."""
        affine = self.affine.copy()
        affine[:3, 3] += affine[:3, :3] @ start
        x, y, z = (last - first for first, last in zip(start, stop, strict=True))
        return Grid((x, y, z), affine)

    def box(self, box: Sequence[slice]) -> Grid:
        """The grid of a part of the volume."""
        return self.part([part.start for part in box], [part.stop for part in box])

    def slab(self, axis: int, start: int, stop: int) -> Box:
        """The box of the planes ``start`` to ``stop`` along an axis."""
        x, y, z = (slice(start, stop) if each == axis else slice(0, size) for each, size in enumerate(self.shape))
        return x, y, z

    def with_axes(self, order: Sequence[int]) -> Grid:
        """The grid of the same volume with its axes in another order."""
        x, y, z = (self.shape[axis] for axis in order)
        return Grid((x, y, z), self.affine[:, [*order, 3]])

    def in_ras(self) -> Grid:
        """The grid of the same volume with its axes turned and mirrored to the closest ones of RAS."""
        turn = nibabel.io_orientation(self.affine)
        x, y, z = (self.shape[axis] for axis in np.argsort(turn[:, 0]))
        return Grid((x, y, z), self.affine @ nibabel.orientations.inv_ornt_aff(turn, self.shape))

    @property
    def stacking_axis(self) -> int:
        """Which axis of the RAS grid (0, 1 or 2) the stored slices, along the last axis, are stacked along."""
        return int(nibabel.io_orientation(self.affine)[2, 0])


def spaced(grid: Grid, spacing_mm: Sequence[float]) -> Grid:
    """The grid of another spacing, with the same first voxel and directions, as MONAI's `Spacing` places it."""
    # one number, seen as a whole volume: only shape and affine are looked at
    nothing = MetaTensor(torch.empty(1).expand(1, *grid.shape), affine=torch.from_numpy(grid.affine))
    promised = Spacing(spacing_mm)(nothing, lazy=True)
    x, y, z = (int(size) for size in promised.peek_pending_shape())
    return Grid((x, y, z), np.asarray(promised.peek_pending_affine(), np.float64))


def slab_ranges(shape: Sequence[int], source_voxels: int = 0, channels: int = 1) -> list[tuple[int, int]]:
    """Cut the first axis of a shape into ranges that each cost about as much memory as `SLAB_VOXELS` values.

    Args:
        shape: of what is made, slab by slab.
        source_voxels: of the whole that it is made from, if that may be the larger one.
        channels: values in a voxel.
    """
    row = channels * max(math.prod(shape[1:]), source_voxels // shape[0])
    step = max(1, SLAB_VOXELS // max(1, row))
    return [(start, min(start + step, shape[0])) for start in range(0, shape[0], step)]
