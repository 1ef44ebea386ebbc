"""What is computed slab by slab, so that what is between is there for one slab at a time; convolutions so along x."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise, product
from typing import Any

import torch
from torch.autograd.function import once_differentiable
from torch.nn import functional

_VALUES = 2**15  # of a slab's results
LEAST_ROWS = 6


def slabs(values: torch.Tensor, axis: int, most: int) -> Iterator[slice]:
    """Slabs along an axis, of about so many values and of one row at least."""
    width = values.shape[axis]
    thick = max(1, most * width // max(1, values.numel()))
    return (slice(start, start + thick) for start in range(0, width, thick))


def doubled(channels: int, kernel: torch.Tensor, bias: torch.Tensor, *parts: torch.Tensor) -> torch.Tensor:
    """A transposed convolution that doubles the sides, as a convolution of the small map.

    The voxels of the result are of eight kinds, by whether x, y, z are even or odd. Each kind is an ordinary
    convolution of the small map with a part of the kernel; all eight are computed as channels of one convolution, and
    put next to each other (Shi et al., CVPR 2016, section 2.2).

    Args:
        channels: of the result.
        kernel: (8 * channels, all channels of the parts, 2, 2, 2).
        bias: (8 * channels).
        parts: maps (patches, channels, x, y, z) whose channels follow each other.

    Returns:
        (patches, channels, 2 x, 2 y, 2 z).
    """
    result: torch.Tensor = _Doubled.apply(channels, kernel, bias, *parts)
    return result


def convolved(features: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """A convolution with kernel 3, stride 1 and padding 1, whose result is contiguous in memory."""
    result: torch.Tensor = _Convolved.apply(features, weight, bias)
    return result


class _Doubled(torch.autograd.Function):
    @staticmethod
    def forward(
        context: Any, channels: int, kernel: torch.Tensor, bias: torch.Tensor, *parts: torch.Tensor
    ) -> torch.Tensor:
        context.save_for_backward(kernel, *parts)
        context.channels = channels
        first = parts[0]
        result = first.new_empty(len(first), channels, *(2 * side for side in first.shape[2:]))
        for rows, read in _double_slabs(parts, channels):
            kinds = functional.conv3d(_joined(parts, read), kernel, bias, padding=1)
            for voxels, each in _interleaved(result, kinds, rows):
                voxels.copy_(each)
            del kinds, each
        return result

    @staticmethod
    @once_differentiable
    def backward(context: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        kernel, *parts = context.saved_tensors
        first, channels = parts[0], context.channels
        own: list[torch.Tensor] = []
        sums = (_sum_for(kernel), _sum_for(kernel[:, 0, 0, 0, 0]))
        for rows, read in _double_slabs(parts, channels):
            features = _joined(parts, read)
            sides = [side + 1 for side in features.shape[2:]]
            kinds = gradient.new_zeros(len(first), 8 * channels, *sides)
            for voxels, each in _interleaved(gradient, kinds, rows):
                each.copy_(voxels)
            to_features, *more = _convolved_back(kinds, features, kernel)
            for one, other in zip(sums, more, strict=True):
                one += other
            here = to_features.split([each.shape[1] for each in parts], 1)
            if rows.stop - rows.start == first.shape[2]:
                own = list(here)
            else:
                own = own or [torch.zeros_like(each) for each in parts]
                for to_part, part in zip(own, here, strict=True):
                    to_part[:, :, read] += part
                del part
            del features, kinds, each, to_features, here
        return None, *(each.to(kernel.dtype) for each in sums), *own


def _double_slabs(parts: Sequence[torch.Tensor], channels: int) -> Iterator[tuple[slice, slice]]:
    """A map that is not in parts makes one slab, which is quicker: whoever has joined it has the memory."""
    if len(parts) > 1:
        return _row_slabs(parts[0], 8 * channels, after=1)
    return iter([(slice(0, parts[0].shape[2]), slice(0, parts[0].shape[2]))])


def _joined(parts: Sequence[torch.Tensor], rows: slice) -> torch.Tensor:
    return torch.cat([each[:, :, rows] for each in parts], 1) if len(parts) > 1 else parts[0][:, :, rows]


def _sum_for(weight: torch.Tensor) -> torch.Tensor:
    """Zeros, to sum the gradients of a weight up: in fp32 at least."""
    return torch.zeros_like(weight, dtype=torch.promote_types(weight.dtype, torch.float32))


def _row_slabs(features: torch.Tensor, channels: int, before: int = 0, after: int = 0) -> Iterator[tuple[slice, slice]]:
    """Slabs along x, for whose results a convolution reads so many rows before and after them: the slab, and what is
    read. In all there are so many channels of results.
    """
    side = features.shape[2]
    slabs = max(1, min(side // LEAST_ROWS, len(features) * channels * features[0, 0].numel() // _VALUES))
    for start, stop in pairwise(number * side // slabs for number in range(slabs + 1)):
        yield slice(start, stop), slice(max(0, start - before), stop + after)


def _convolved_back(gradient: torch.Tensor, features: torch.Tensor, weight: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """The gradients of what a convolution with a padding of 1 read, of its weight and of its bias."""
    ones, wanted = [1, 1, 1], [True, True, True]
    found: tuple[torch.Tensor, ...] = torch.ops.aten.convolution_backward(
        gradient, features, weight, [len(weight)], ones, ones, ones, False, [0, 0, 0], 1, wanted
    )
    return found


def _interleaved(result: torch.Tensor, kinds: torch.Tensor, rows: slice) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """For each kind of voxels its places in the result's rows, and its channels."""
    count = rows.stop - rows.start
    parts = kinds[:, :, 1 : count + 1, 1:, 1:].unflatten(1, (result.shape[1], 2, 2, 2))
    voxels = result[:, :, 2 * rows.start : 2 * rows.stop]
    for odd in product(range(2), repeat=3):
        places = tuple(slice(start, None, 2) for start in odd)
        yield voxels[(slice(None), slice(None), *places)], parts[(slice(None), slice(None), *odd)]


class _Convolved(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, features: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        context.save_for_backward(features, weight)
        result = features.new_empty(len(features), len(weight), *features.shape[2:])
        for rows, read in _row_slabs(features, len(weight), before=1, after=1):
            own = slice(rows.start - read.start, rows.stop - read.start)
            result[:, :, rows] = functional.conv3d(features[:, :, read], weight, bias, padding=1)[:, :, own]
        return result

    @staticmethod
    @once_differentiable
    def backward(context: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        features, weight = context.saved_tensors
        to_features, sums = torch.zeros_like(features), (_sum_for(weight), _sum_for(weight[:, 0, 0, 0, 0]))
        for rows, read in _row_slabs(features, len(weight), before=1, after=1):
            upstream = torch.zeros_like(gradient[:, :, read])
            upstream[:, :, rows.start - read.start : rows.stop - read.start] = gradient[:, :, rows]
            part, *more = _convolved_back(upstream, features[:, :, read], weight)
            to_features[:, :, read] += part
            for one, other in zip(sums, more, strict=True):
                one += other
            del upstream, part
        return to_features, sums[0].to(weight.dtype), sums[1].to(weight.dtype)


def as_computed(*tensors: torch.Tensor) -> list[torch.Tensor]:
    """Tensors in the precision that layers compute in."""
    device = tensors[0].device.type
    if not torch.is_autocast_enabled(device):
        return list(tensors)
    return [each.to(torch.get_autocast_dtype(device)) for each in tensors]
