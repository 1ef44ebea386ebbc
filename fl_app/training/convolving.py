"""Convolutions as functions with their gradients, which may be written over what was read.

Rows are planes along x. The gradients of rows that were read come from those of the rows around them in the result, and
from no others, so that what was read can be overwritten slab by slab.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import prod
from typing import Protocol

import torch
from torch.nn import functional

from fl_app.training.spilling import exchanged, spills, turned

LEAST_ROWS = 6  # of a slab; a convolution of fewer rows than its kernel has is wrong in bf16 (`GuardedConv3d`)
LEAST_READ = 2  # where nothing is wrong with fewer
_SLAB_VALUES = {"cpu": 2**15, "cuda": 2**20}  # of a slab's results at least

Maps = Sequence[torch.Tensor]  # (patches, channels, x, y, z), whose channels follow each other


@dataclass(frozen=True)
class Wanted:
    """What a backward pass has to find.

    Attributes:
        parts: whether the gradients of the maps.
        kernel: whether that of the kernel.
        over: for each part whether its gradient may be written over it.
        added: what is added to the gradient of a map in one part.
    """

    parts: bool
    kernel: bool
    over: tuple[bool, ...]
    added: torch.Tensor | None = None


@dataclass(frozen=True)
class Gradients:
    """What a backward pass finds.

    Attributes:
        parts: of the maps that were read; empty if they are not wanted.
        kernel: of the kernel; none if it is not wanted.
        bias: for each channel of the result.
    """

    parts: Maps
    kernel: torch.Tensor | None
    bias: torch.Tensor


class Convolving(Protocol):
    """A convolution of maps (patches, channels, x, y, z) whose channels follow each other."""

    def forward(self, parts: Maps, kernel: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """Its result, which shares no memory with what it read."""

    def backward(self, gradient: torch.Tensor, parts: Maps, kernel: torch.Tensor, wanted: Wanted) -> Gradients:
        """The gradients of what `forward` took.

        Args:
            gradient: of the result.
            parts: as `forward` took them.
            kernel: as `forward` took it.
            wanted: which gradients, and where to write them.
        """


@dataclass(frozen=True)
class Smoothing:
    """A convolution with kernel 3, stride 1 and padding 1 of a map in one part.

    Attributes:
        in_slabs: compute the result slab by slab, so that it is contiguous in memory, which results of few channels
            otherwise are not.
    """

    in_slabs: bool

    def forward(self, parts: Maps, kernel: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """See `Convolving.forward`."""
        [features] = parts
        if not self.in_slabs:
            return functional.conv3d(features, kernel, bias, padding=1)
        result = features.new_empty(len(features), len(kernel), *features.shape[2:])
        for rows in row_slabs(features, len(kernel), LEAST_READ):
            read = slice(max(0, rows.start - 1), rows.stop + 1)
            own = slice(rows.start - read.start, rows.stop - read.start)
            result[:, :, rows] = functional.conv3d(features[:, :, read], kernel, bias, padding=1)[:, :, own]
        return result

    def add(self, features: torch.Tensor, kernel: torch.Tensor, bias: torch.Tensor | None) -> None:
        """Add the result to what was read, in place."""
        before = features[:, :, :0]  # the row before a slab, as it was
        for rows in row_slabs(features, len(kernel), LEAST_READ):
            read = torch.cat([before, features[:, :, rows.start : rows.stop + 1]], 2)
            before = features[:, :, rows.stop - 1 : rows.stop].clone()
            own = slice(min(1, rows.start), min(1, rows.start) + rows.stop - rows.start)
            features[:, :, rows] += functional.conv3d(read, kernel, bias, padding=1)[:, :, own]
            del read

    def backward(self, gradient: torch.Tensor, parts: Maps, kernel: torch.Tensor, wanted: Wanted) -> Gradients:
        """See `Convolving.backward`."""
        [features], own = parts, places(parts, wanted)
        side, to_kernel = features.shape[2], sum_for(kernel)
        for rows in row_slabs(features, len(kernel)):
            reached = slice(max(0, rows.start - 1), min(side, rows.stop + 1))
            upstream = gradient[:, :, reached]
            if reached.stop - reached.start < rows.stop - rows.start + 2:  # at an end, where nothing is reached
                upstream = functional.pad(
                    upstream, (0, 0, 0, 0, reached.start - rows.start + 1, rows.stop + 1 - reached.stop)
                )
            to_features, more = back(upstream, features[:, :, rows], kernel, (2, 1, 1), wanted)
            if more is not None:
                to_kernel += more
            if own and to_features is not None:
                own[0][:, :, rows] = to_features if wanted.added is None else to_features.add_(wanted.added[:, :, rows])
            del upstream, to_features
        return Gradients(own, to_kernel if wanted.kernel else None, summed(gradient))


@dataclass(frozen=True)
class Striding:
    """Any other convolution of a map in one part.

    Attributes:
        stride: voxels along each axis.
        padding: voxels along each axis.
        dilation: voxels along each axis.
    """

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]

    def forward(self, parts: Maps, kernel: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """See `Convolving.forward`."""
        [features] = parts
        return functional.conv3d(features, kernel, bias, self.stride, self.padding, self.dilation)

    def backward(self, gradient: torch.Tensor, parts: Maps, kernel: torch.Tensor, wanted: Wanted) -> Gradients:
        """See `Convolving.backward`."""
        [features] = parts
        own, to_kernel = back(gradient, features, kernel, self.padding, wanted, self.stride, None, self.dilation)
        if own is not None and wanted.added is not None:
            own += wanted.added
        return Gradients([] if own is None else [own], to_kernel, summed(gradient))


def row_slabs(features: torch.Tensor, channels: int, least: int = LEAST_ROWS) -> Iterator[slice]:
    """Slabs along x, of so many rows at least; in all there are so many channels of results."""
    side = features.shape[2]
    values = len(features) * channels * features[0, 0].numel()
    count = max(1, min(side // least, values // _SLAB_VALUES[features.device.type]))
    return (slice(*rows) for rows in pairwise(number * side // count for number in range(count + 1)))


def places(parts: Maps, wanted: Wanted) -> list[torch.Tensor]:
    """Where the gradients of the parts are written; nowhere if they are not wanted."""
    if not wanted.parts:
        return []
    return [part if here else torch.empty_like(part) for part, here in zip(parts, wanted.over, strict=True)]


def summed(gradient: torch.Tensor) -> torch.Tensor:
    """For each channel, in fp32 at least."""
    return gradient.sum((0, 2, 3, 4), dtype=torch.promote_types(gradient.dtype, torch.float32))


def sum_for(weight: torch.Tensor) -> torch.Tensor:
    """Zeros, to sum the gradients of a weight up: in fp32 at least."""
    return torch.zeros_like(weight, dtype=torch.promote_types(weight.dtype, torch.float32))


def back(
    gradient: torch.Tensor,
    features: torch.Tensor,
    kernel: torch.Tensor,
    padding: tuple[int, ...],
    wanted: Wanted,
    stride: tuple[int, ...] = (1, 1, 1),
    output_padding: tuple[int, ...] | None = None,
    dilation: tuple[int, ...] = (1, 1, 1),
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """The gradients of what a convolution read, which is a transposed one if it has an output padding, and of its
    kernel. Where that is not safe otherwise, with the first two axes exchanged.
    """
    sides = max(gradient.shape[2:], features.shape[2:], key=prod)
    turn = spills(sides, (gradient.shape[1], features.shape[1]), features.dtype, features.device)
    if turn:
        gradient, features, kernel = turned(gradient), turned(features), kernel.transpose(2, 3)
        padding, stride, dilation = exchanged(padding), exchanged(stride), exchanged(dilation)
        output_padding = exchanged(output_padding) if output_padding else None
    to_features, to_kernel, _ = torch.ops.aten.convolution_backward(
        gradient,
        features,
        kernel,
        None,
        stride,
        padding,
        dilation,
        output_padding is not None,
        output_padding or (0, 0, 0),
        1,
        [wanted.parts, wanted.kernel, False],
    )
    if turn:
        found = [None if each is None else each.transpose(2, 3) for each in (to_features, to_kernel)]
        to_features, to_kernel = found
    return to_features, to_kernel
