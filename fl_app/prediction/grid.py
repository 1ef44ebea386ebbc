"""From a scan's own grid to the model's and back, slab by slab, exactly as training prepares its cases."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import nibabel
import numpy as np
import torch
from monai.data.meta_tensor import MetaTensor
from monai.transforms import Orientation, Spacing, SpatialResample

from fl_app.data.geometry import FloatArray

Box = tuple[slice, slice, slice]
ReadBox = Callable[[Box], torch.Tensor]  # (channels, x, y, z) of a box


@dataclass(frozen=True)
class Grid:
    """Where the voxels of a volume lie.

    Attributes:
        shape: voxels along x, y, z.
        affine: (4, 4) float64, voxel to mm in RAS+.
    """

    shape: tuple[int, int, int]
    affine: FloatArray

    def box(self, box: Box) -> Grid:
        """The grid of a part of the volume."""
        affine = self.affine.copy()
        affine[:3, 3] = (self.affine @ [*(part.start for part in box), 1])[:3]
        x, y, z = (part.stop - part.start for part in box)
        return Grid((x, y, z), affine)

    def slab(self, axis: int, start: int, stop: int) -> Box:
        """The box of the planes ``start`` to ``stop`` along an axis."""
        x, y, z = (slice(start, stop) if each == axis else slice(0, size) for each, size in enumerate(self.shape))
        return x, y, z


def prepared_grid(scan: Grid, spacing_mm: tuple[float, float, float]) -> Grid:
    """The grid that training's `Orientation` and `Spacing` would bring a volume to; no voxel is computed."""
    # one number, seen as a whole volume: only shape and affine are looked at
    virtual = MetaTensor(torch.zeros(1, 1, 1, 1).expand(1, *scan.shape), affine=torch.from_numpy(scan.affine))
    moved = Spacing(spacing_mm, lazy=True)(Orientation("RAS", labels=None, lazy=True)(virtual))
    x, y, z = (int(size) for size in moved.peek_pending_shape())
    return Grid((x, y, z), moved.peek_pending_affine().numpy().astype(np.float64))


def stacking_axis(affine: FloatArray) -> int:
    """Which axis of the RAS grid (0, 1 or 2) the stored slices, along the last axis, are stacked along."""
    return int(nibabel.io_orientation(affine)[2, 0])


def resample(source: Grid, read: ReadBox, target: Grid, padding: str) -> torch.Tensor:
    """Linear interpolation onto a target grid; of the source only the box that is needed is read.

    Args:
        source: the whole grid that ``read`` reads boxes of.
        read: returns (channels, x, y, z) of a box.
        target: the wanted grid, usually a slab.
        padding: what lies outside the source: "border" (its nearest voxel) or "zeros".

    Returns:
        (channels, x, y, z) float32 on the target grid.
    """
    box = _needed_box(source, target)
    part = MetaTensor(read(box), affine=torch.from_numpy(source.box(box).affine))
    resampled = SpatialResample(mode="bilinear", padding_mode=padding)(
        part, dst_affine=torch.from_numpy(target.affine), spatial_size=target.shape
    )
    return resampled.as_tensor().to(torch.float32)


def _needed_box(source: Grid, target: Grid) -> Box:
    """The source voxels between which the target's lie, one more on each side; at least one voxel."""
    corners = np.array([*itertools.product(*((0, size - 1) for size in target.shape), (1,))], np.float64).T
    places: FloatArray = np.linalg.solve(source.affine, target.affine @ corners)[:3]
    low, high = np.floor(places.min(axis=1)).astype(int) - 1, np.ceil(places.max(axis=1)).astype(int) + 2
    x, y, z = (
        slice(min(max(0, int(first)), size - 1), max(1, min(int(last), size)))
        for first, last, size in zip(low, high, source.shape, strict=True)
    )
    return x, y, z
