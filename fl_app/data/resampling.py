"""Bring a volume to another grid, one axis after the other where the two grids' axes are parallel: nearly every CT."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from monai.data.meta_tensor import MetaTensor
from monai.transforms import Spacing, SpatialResample
from numpy.typing import NDArray

from fl_app.data.geometry import FloatArray, Volume

_LARGEST_STRAY = 1e-3  # voxels by which parallel axes may part: less than 1 HU where tissue meets air

Places = list[NDArray[np.float64]]


@dataclass(frozen=True)
class Grid:
    """Where a volume's voxels lie: shape (x, y, z), and affine (4, 4) from voxel to mm."""

    shape: tuple[int, ...]
    affine: FloatArray

    def part(self, start: Sequence[int], stop: Sequence[int]) -> Grid:
        """The grid of the voxels from ``start`` to ``stop`` (excluded)."""
        affine = self.affine.copy()
        affine[:3, 3] += affine[:3, :3] @ start
        return Grid(tuple(last - first for first, last in zip(start, stop, strict=True)), affine)


def spaced(grid: Grid, spacing_mm: Sequence[float]) -> Grid:
    """The grid of another spacing, with the same first voxel and directions, as MONAI's `Spacing` places it."""
    nothing = MetaTensor(torch.empty(1).expand(1, *grid.shape), affine=torch.from_numpy(grid.affine))
    promised = Spacing(spacing_mm)(nothing, lazy=True)
    shape = tuple(int(size) for size in promised.peek_pending_shape())
    return Grid(shape, np.asarray(promised.peek_pending_affine(), np.float64))


def around(mask: NDArray[np.bool_], source: Grid, wanted: Grid, margin: int) -> tuple[list[int], list[int]]:
    """The first voxel of a box that holds a mask, and the one after its last; all of the grid for an empty mask.

    Args:
        mask: (x, y, z) on the grid ``source``.
        source: where the mask's voxels lie.
        wanted: the grid that the box is of.
        margin: voxels that the box is larger on each side, as far as there are any.
    """
    order, planes = _in_memory_order(mask)
    found = _ends(planes)
    if found[0][0] > found[0][1]:
        return [0, 0, 0], list(wanted.shape)
    ends = [found[order.index(axis)] for axis in range(3)]
    corners = np.array(np.meshgrid(*ends, (1,))).reshape(4, -1)
    reached = (np.linalg.solve(wanted.affine, source.affine) @ corners)[:3].round(3)
    start = np.maximum(np.floor(reached.min(axis=1)).astype(int) - margin, 0)
    stop = np.minimum(np.ceil(reached.max(axis=1)).astype(int) + 1 + margin, wanted.shape)
    return start.tolist(), stop.tolist()


def resample_linearly(volume: Volume, source: Grid, wanted: Grid) -> torch.Tensor:
    """A volume (x, y, z) of any real type on another grid, float32; beyond its ends its last values go on."""
    at = _places(source, wanted)
    if at is None:
        return _resample_by_points(volume, source, wanted, "bilinear")
    order, planes = _in_memory_order(volume)
    slow, middle, fast = (_neighbours(at[axis], volume.shape[axis]) for axis in order)
    # plane by plane, what is between the two steps stays in the processor's cache
    shrunk = [
        _blend(_blend(torch.from_numpy(plane.astype(np.float32, order="C")), 0, *middle), 1, *fast) for plane in planes
    ]
    made = torch.stack(
        [torch.lerp(shrunk[low], shrunk[high], float(share)) for low, high, share in zip(*slow, strict=True)]
    )
    return made.permute(np.argsort(order).tolist())


def resample_to_nearest(volume: Volume, source: Grid, wanted: Grid) -> torch.Tensor:
    """A volume (x, y, z) on another grid: of each place the nearest voxel's value, halfway the further one's."""
    at = _places(source, wanted)
    if at is None:
        return _resample_by_points(volume, source, wanted, "nearest").to(torch.from_numpy(volume[:1, :1, :1]).dtype)
    order, planes = _in_memory_order(volume)
    nearest = [np.floor(at[axis] + 0.5).astype(np.int64) for axis in order]
    found = torch.zeros(wanted.shape, dtype=torch.from_numpy(volume[:1, :1, :1]).dtype)
    # an organ fills little of a volume: the places whose nearest voxels lie in planes of zeros are left as they are
    ends = _ends(planes)
    reached = [np.flatnonzero((each >= low) & (each <= high)) for each, (low, high) in zip(nearest, ends, strict=True)]
    if not all(map(len, reached)):
        return found
    box = [slice(int(each[0]), int(each[-1]) + 1) for each in reached]
    made = torch.from_numpy(np.ascontiguousarray(planes[tuple(slice(low, high + 1) for low, high in ends)]))
    for place in (1, 2, 0):  # planes are multiplied last
        made = made.index_select(place, torch.from_numpy(nearest[place][box[place]] - ends[place][0]))
    back = np.argsort(order).tolist()
    found[tuple(box[place] for place in back)] = made.permute(back)
    return found


def in_order(volume: torch.Tensor) -> torch.Tensor:
    """A volume (x, y, z) with z next to each other in memory; of one that lies the other way round in half the time."""
    if volume.stride(0) != 1:
        return volume.contiguous()
    x, y, z = volume.shape
    # torch turns a matrix block by block, but three axes value by value
    turned = volume.permute(2, 1, 0).contiguous().view(z, y * x).t().contiguous()
    return turned.view(y, x, z).transpose(0, 1).contiguous()


def _places(source: Grid, wanted: Grid) -> Places | None:
    """For each axis, where the wanted voxels lie among the source's, in voxels; None where axes are not parallel."""
    change = np.linalg.solve(source.affine, wanted.affine)
    steps = np.diag(change)[:3]
    stray = np.abs(change[:3, :3] - np.diag(steps)) @ np.asarray(wanted.shape)
    if stray.max() > _LARGEST_STRAY:
        return None
    return [
        np.clip(start + step * np.arange(size), 0, held - 1)
        for start, step, size, held in zip(change[:3, 3], steps, wanted.shape, source.shape, strict=True)
    ]


def _in_memory_order(volume: Volume) -> tuple[list[int], Volume]:
    """The axes from the one with the longest strides to the one with the shortest, and the volume turned so."""
    order = np.argsort([-abs(stride) for stride in volume.strides], kind="stable").tolist()
    return order, volume.transpose(order)


def _ends(volume: Volume | NDArray[np.bool_]) -> list[tuple[int, int]]:
    """Along each axis, the first and the last plane that is not all 0; (1, 0) where there is none."""
    across = np.any(volume, axis=0)
    filled = [np.flatnonzero(np.any(held, axis=axis)) for held, axis in ((volume, (1, 2)), (across, 1), (across, 0))]
    return [(int(planes[0]), int(planes[-1])) if len(planes) else (1, 0) for planes in filled]


def _neighbours(at: NDArray[np.float64], size: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The voxel below each place, the one above, and the share of the one above."""
    below = np.floor(at).astype(np.int64)
    above = np.minimum(below + 1, size - 1)
    return torch.from_numpy(below), torch.from_numpy(above), torch.from_numpy((at - below).astype(np.float32))


def _blend(
    plane: torch.Tensor, axis: int, below: torch.Tensor, above: torch.Tensor, share: torch.Tensor
) -> torch.Tensor:
    """A plane between its voxels along one axis: (1 - s) v_below + s v_above."""
    return plane.index_select(axis, below).lerp_(
        plane.index_select(axis, above), share[:, None] if axis == 0 else share
    )


def _resample_by_points(volume: Volume, source: Grid, wanted: Grid, mode: str) -> torch.Tensor:
    """MONAI's way, which takes any two grids: float32."""
    held = MetaTensor(torch.from_numpy(volume[None].astype(np.float32)), affine=torch.from_numpy(source.affine))
    made = SpatialResample(mode=mode, padding_mode="border")(held, dst_affine=wanted.affine, spatial_size=wanted.shape)
    return made.as_tensor()[0]
