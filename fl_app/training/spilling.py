"""Where oneDNN would write beyond its memory, and how convolutions get around it.

For a convolution's kernel gradient in bf16 on a CPU with AMX, oneDNN 3.12 (`brgconv_bwd_w`) copies both maps. Where the
cache does not hold a plane of them it copies a block of rows of each plane, for which it has room, but counts the rows
from the beginning of the plane, so that those of the last planes lie beyond: the process dies sooner or later. With at
least as many planes as rows in a plane it copies one plane at a time, and then there is room.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import torch

_CACHE = 10**6  # bytes; oneDNN takes 0.6 of the second-level cache, which is of 2 MiB where there is AMX
_CHANNELS, _VOXELS = 16, 32  # a row's are filled up to a multiple of these
_BORDER = 8  # what a kernel reads besides, in voxels
_COPIES = 2 * 2  # the map and its copy, in two bytes a value

Values = TypeVar("Values")


def spills(sides: Sequence[int], channels: tuple[int, int], kind: torch.dtype, device: torch.device) -> bool:
    """Whether a convolution's kernel gradient is not safe, so that it has to be turned.

    Args:
        sides: voxels of the larger map, the one that is read or the result.
        channels: of both.
        kind: what is computed in.
        device: where.
    """
    if kind != torch.bfloat16 or device.type != "cpu" or sides[0] >= sides[1]:
        return False
    row = _filled(sides[2] + _BORDER, _VOXELS) * sum(_filled(each, _CHANNELS) for each in channels)
    return _COPIES * row * (sides[1] + _BORDER) > _CACHE


def _filled(count: int, block: int) -> int:
    return -(-count // block) * block


def turned(map: torch.Tensor) -> torch.Tensor:
    """A map (patches, channels, x, y, z) with its first two axes exchanged, in the layout that is computed in."""
    return map.transpose(2, 3).contiguous(memory_format=torch.channels_last_3d)


def exchanged(values: Sequence[Values]) -> tuple[Values, ...]:
    """Values for each axis, those of the first two exchanged."""
    first, second, *others = values
    return (second, first, *others)
