"""Bring a volume to another grid, one axis after the other where the two grids' axes are parallel: nearly every CT."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Literal

import numpy as np
import torch
from monai.data.meta_tensor import MetaTensor
from monai.transforms import SpatialResample
from numpy.typing import NDArray

from fl_app.data.geometry import FloatArray, Volume
from fl_app.data.grid import Box, Grid

_NOTHING = 1e-6  # of a value that has faded: rounding left it
_LARGEST_STRAY = 1e-3  # voxels by which parallel axes may part: less than 1 HU where tissue meets air

Places = list[NDArray[np.float64]]
ReadBox = Callable[[Box], Volume]  # (channels, x, y, z) of a box
Padding = Literal["border", "zeros"]


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


def resample_linearly(volume: Volume, source: Grid, wanted: Grid, padding: Padding = "border") -> torch.Tensor:
    """A volume (x, y, z) of any real type on another grid, float32.

    Args:
        volume: its values.
        source: where they lie.
        wanted: where values are wanted.
        padding: what lies beyond the volume's ends: "border" (its last values go on) or "zeros", to which they fade
            within one voxel.
    """
    order = _axes(source, wanted)
    volume, source = volume.transpose(order), source.with_axes(order)
    at = _places(source, wanted)
    if at is None:
        return _resample_by_points(volume[None], source, wanted, "bilinear", padding)[0]
    if padding == "border":
        return _interpolate(volume, at)
    fades = [np.clip(np.minimum(1 + each, size - each), 0, 1) for each, size in zip(at, volume.shape, strict=True)]
    reached = [np.flatnonzero(fade > _NOTHING) for fade in fades]
    if not all(map(len, reached)):
        return torch.zeros(wanted.shape)
    box = tuple(slice(int(each[0]), int(each[-1]) + 1) for each in reached)
    made = _interpolate(volume, [each[part] for each, part in zip(at, box, strict=True)])
    for axis, (fade, part) in enumerate(zip(fades, box, strict=True)):
        for place in np.flatnonzero(fade[part] < 1):
            made.select(axis, int(place)).mul_(float(fade[part][place]))
    slowest_first, _ = _in_memory_order(made.numpy())  # the result lies in memory as what was made
    found = torch.zeros(wanted.with_axes(slowest_first).shape).permute(np.argsort(slowest_first).tolist())
    found[box] = made
    return found


def resample_box(source: Grid, read: ReadBox, wanted: Grid, padding: Padding) -> Iterator[torch.Tensor]:
    """Channel by channel a volume on another grid, as by `resample_linearly`; only the box that is needed is read.

    Args:
        source: the whole grid that ``read`` reads boxes of.
        read: returns (channels, x, y, z) of a box.
        wanted: where values are wanted, usually a slab.
        padding: what lies outside the source.
    """
    box = _needed_box(source, wanted)
    channels, held = read(box), source.box(box)
    if _places(held.with_axes(_axes(held, wanted)), wanted) is None:
        yield from _resample_by_points(channels, held, wanted, "bilinear", padding)  # points are found once for all
        return
    for channel in channels:
        yield resample_linearly(channel, held, wanted, padding)


def resample_to_nearest(volume: Volume, source: Grid, wanted: Grid) -> torch.Tensor:
    """A volume (x, y, z) on another grid: of each place the nearest voxel's value, halfway the further one's."""
    order = _axes(source, wanted)
    volume, source = volume.transpose(order), source.with_axes(order)
    at, dtype = _places(source, wanted), torch.from_numpy(volume[:1, :1, :1]).dtype
    if at is None:
        return _resample_by_points(volume[None], source, wanted, "nearest", "border")[0].to(dtype)
    order, planes = _in_memory_order(volume)
    nearest = [np.floor(_within(at[axis], volume.shape[axis]) + 0.5).astype(np.int64) for axis in order]
    found = torch.zeros(wanted.shape, dtype=dtype)
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


def _axes(source: Grid, wanted: Grid) -> list[int]:
    """The source's axes in the order of the wanted grid's that are closest to them, if each is closest to another."""
    order = np.abs(np.linalg.solve(source.affine, wanted.affine)[:3, :3]).argmax(axis=0).tolist()
    return order if sorted(order) == [0, 1, 2] else [0, 1, 2]


def _places(source: Grid, wanted: Grid) -> Places | None:
    """For each axis, where the wanted voxels lie among the source's, in voxels; None where axes are not parallel."""
    change = np.linalg.solve(source.affine, wanted.affine)
    steps = np.diag(change)[:3]
    stray = np.abs(change[:3, :3] - np.diag(steps)) @ np.asarray(wanted.shape)
    if stray.max() > _LARGEST_STRAY:
        return None
    return [
        start + step * np.arange(size) for start, step, size in zip(change[:3, 3], steps, wanted.shape, strict=True)
    ]


def _within(at: NDArray[np.float64], size: int) -> NDArray[np.float64]:
    return np.clip(at, 0, size - 1)


def _interpolate(volume: Volume, at: Places) -> torch.Tensor:
    """The values between a volume's voxels; beyond its ends the last ones go on."""
    order, planes = _in_memory_order(volume)
    slow, middle, fast = (_neighbours(at[axis], volume.shape[axis]) for axis in order)
    # plane by plane, what is between the two steps stays in the processor's cache
    shrunk = {
        place: _blend(_blend(torch.from_numpy(planes[place].astype(np.float32, order="C")), 0, *middle), 1, *fast)
        for place in sorted({*slow[0].tolist(), *slow[1].tolist()})
    }
    made = torch.stack(
        [torch.lerp(shrunk[int(low)], shrunk[int(high)], float(share)) for low, high, share in zip(*slow, strict=True)]
    )
    return made.permute(np.argsort(order).tolist())


def _needed_box(source: Grid, wanted: Grid) -> Box:
    """The source voxels between which the wanted ones lie; at least one voxel."""
    corners = np.array([*itertools.product(*((0, size - 1) for size in wanted.shape), (1,))], np.float64).T
    # rounding does not ask for planes that would count for nothing
    places: FloatArray = np.linalg.solve(source.affine, wanted.affine @ corners)[:3].round(6)
    low, high = np.floor(places.min(axis=1)).astype(int), np.ceil(places.max(axis=1)).astype(int) + 1
    x, y, z = (
        slice(min(max(0, int(first)), size - 1), max(1, min(int(last), size)))
        for first, last, size in zip(low, high, source.shape, strict=True)
    )
    return x, y, z


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
    at = _within(at, size)
    below = np.floor(at).astype(np.int64)
    above = np.minimum(below + 1, size - 1)
    return torch.from_numpy(below), torch.from_numpy(above), torch.from_numpy((at - below).astype(np.float32))


def _blend(
    plane: torch.Tensor, axis: int, below: torch.Tensor, above: torch.Tensor, share: torch.Tensor
) -> torch.Tensor:
    """A plane between its voxels along one axis: (1 - s) v_below + s v_above."""
    if not share.any():
        return plane.index_select(axis, below)
    return plane.index_select(axis, below).lerp_(
        plane.index_select(axis, above), share[:, None] if axis == 0 else share
    )


def _resample_by_points(volumes: Volume, source: Grid, wanted: Grid, mode: str, padding: Padding) -> torch.Tensor:
    """MONAI's way, which takes any two grids: (channels, x, y, z) float32."""
    held = MetaTensor(torch.from_numpy(volumes.astype(np.float32)), affine=torch.from_numpy(source.affine))
    resample = SpatialResample(mode=mode, padding_mode=padding)
    return resample(held, dst_affine=torch.from_numpy(wanted.affine), spatial_size=wanted.shape).as_tensor()
