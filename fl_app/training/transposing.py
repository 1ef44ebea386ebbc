"""Transposed convolutions, of maps in parts whose channels follow each other."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

import torch
from torch.nn import functional

from fl_app.training.convolving import (
    LEAST_READ,
    LEAST_ROWS,
    Gradients,
    Maps,
    Wanted,
    back,
    places,
    row_slabs,
    sum_for,
    summed,
)


@dataclass(frozen=True)
class Doubling:
    """A transposed convolution that doubles the sides, as a convolution of the small map.

    The voxels of the result are of eight kinds, by whether x, y, z are even or odd. Each kind is an ordinary
    convolution of the small map with a part of the kernel; all eight are computed as channels of one convolution, and
    put next to each other (Shi et al., CVPR 2016, section 2.2). The kernel is (8 * channels, all channels of the
    parts, 2, 2, 2), the bias (8 * channels).

    Attributes:
        channels: of the result.
    """

    channels: int

    def forward(self, parts: Maps, kernel: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """See `Convolving.forward`."""
        first = parts[0]
        result = first.new_empty(len(first), self.channels, *(2 * side for side in first.shape[2:]))
        for rows in self._slabs(parts, LEAST_READ):
            read = slice(rows.start, rows.stop + 1)
            kinds = functional.conv3d(_joined(parts, read), kernel, bias, padding=1)
            for voxels, each in _interleaved(result, kinds[:, :, 1:], rows):
                voxels.copy_(each)
            del kinds, each
        return result

    def backward(self, gradient: torch.Tensor, parts: Maps, kernel: torch.Tensor, wanted: Wanted) -> Gradients:
        """See `Convolving.backward`."""
        assert wanted.added is None
        own, to_kernel, to_bias = places(parts, wanted), sum_for(kernel), sum_for(kernel[:, 0, 0, 0, 0])
        for rows in self._slabs(parts):
            features = _joined(parts, rows)
            # each row that is read reaches its own two rows of the result, and the two before
            kinds = gradient.new_zeros(len(features), 8 * self.channels, *(side + 1 for side in features.shape[2:]))
            reached = slice(max(0, rows.start - 1), rows.stop)
            for voxels, each in _interleaved(gradient, kinds[:, :, reached.start - rows.start + 1 :], reached):
                each.copy_(voxels)
            to_features, more = back(kinds, features, kernel, (1, 1, 1), wanted)
            to_bias += kinds[:, :, 1:].sum((0, 2, 3, 4), dtype=to_bias.dtype)
            if more is not None:
                to_kernel += more
            if own and to_features is not None:
                for place, part in zip(own, to_features.split([each.shape[1] for each in parts], 1), strict=True):
                    place[:, :, rows] = part
                del part
            del features, kinds, each, to_features
        return Gradients(own, to_kernel if wanted.kernel else None, to_bias)

    def _slabs(self, parts: Maps, least: int = LEAST_ROWS) -> Iterator[slice]:
        """A map that is not in parts makes one slab, which is quicker: whoever has joined it has the memory."""
        return row_slabs(parts[0], 8 * self.channels, least) if len(parts) > 1 else iter([slice(0, parts[0].shape[2])])


@dataclass(frozen=True)
class Transposing:
    """Any other transposed convolution, of a kernel (all channels of the parts, channels, x, y, z).

    Attributes:
        stride: voxels along each axis.
        padding: voxels along each axis.
        output_padding: voxels along each axis.
        dilation: voxels along each axis.
    """

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    output_padding: tuple[int, ...]
    dilation: tuple[int, ...]

    def forward(self, parts: Maps, kernel: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """See `Convolving.forward`."""
        result = None
        for part, own in zip(parts, self._split(parts, kernel), strict=True):
            more = functional.conv_transpose3d(
                part, own, bias if result is None else None, self.stride, self.padding, self.output_padding, 1,
                self.dilation,
            )  # fmt: skip
            result = more if result is None else result.add_(more)
            del more
        assert result is not None
        return result

    def backward(self, gradient: torch.Tensor, parts: Maps, kernel: torch.Tensor, wanted: Wanted) -> Gradients:
        """See `Convolving.backward`."""
        assert wanted.added is None
        found: list[torch.Tensor] = []
        kernels: list[torch.Tensor] = []
        for part, own, over in zip(parts, self._split(parts, kernel), wanted.over, strict=True):
            to_part, to_own = back(
                gradient, part, own, self.padding, wanted, self.stride, self.output_padding, self.dilation
            )
            found += [] if to_part is None else [part.copy_(to_part) if over else to_part]
            kernels += [] if to_own is None else [to_own]
            del to_part
        to_kernel = torch.cat(kernels) if wanted.kernel else None
        return Gradients(found, to_kernel, summed(gradient))

    def _split(self, parts: Maps, kernel: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return kernel.split([part.shape[1] for part in parts])


def _joined(parts: Maps, rows: slice) -> torch.Tensor:
    return torch.cat([each[:, :, rows] for each in parts], 1) if len(parts) > 1 else parts[0][:, :, rows]


def _interleaved(result: torch.Tensor, kinds: torch.Tensor, rows: slice) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """For each kind of voxels its places in the result's rows, and its channels in these rows of the kinds."""
    count = rows.stop - rows.start
    parts = kinds[:, :, :count, 1:, 1:].unflatten(1, (result.shape[1], 2, 2, 2))
    voxels = result[:, :, 2 * rows.start : 2 * rows.stop]
    for odd in product(range(2), repeat=3):
        places = tuple(slice(start, None, 2) for start in odd)
        yield voxels[(slice(None), slice(None), *places)], parts[(slice(None), slice(None), *odd)]
