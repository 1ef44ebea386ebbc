"""Convolutions in packed maps: quick where there are few channels at full resolution.

Processors compute 16 channels and more at once, and a U-Net begins with one and ends with two or three, as many as
classes. A packed map has the voxels of each block of 2 x 2 x 2 as channels (space to depth, Shi et al., CVPR 2016,
section 2.2): half the sides, eight times the channels. A voxel's neighbours lie in its own block or the next one, so a
convolution with kernel 3 is one with kernel 3 of blocks, or 2 if only every other voxel of the result is wanted.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
from torch.autograd.function import once_differentiable
from torch.nn import functional

from fl_app.training.blocks import Following
from fl_app.training.convolving import Gradients, Maps, Wanted, back, summed

VOXELS = 8  # of a block
_PAIRS = {2: torch.int32, 4: torch.int64, 8: torch.complex128}  # two neighbours along z as one value, by bytes of one


@dataclass(frozen=True)
class PackedDoubling:
    """`fl_app.training.transposing.Doubling`, with a packed result: its kinds of voxels stay channels."""

    def forward(self, parts: Maps, kernel: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """See `Convolving.forward`."""
        [features] = parts
        kinds = functional.conv3d(features, kernel, bias, padding=1)
        return kinds[:, :, 1:, 1:, 1:].contiguous(memory_format=torch.channels_last_3d)

    def backward(self, gradient: torch.Tensor, parts: Maps, kernel: torch.Tensor, wanted: Wanted) -> Gradients:
        """See `Convolving.backward`."""
        assert wanted.added is None
        [features] = parts
        kinds = functional.pad(gradient, (1, 0) * 3)
        to_features, to_kernel = back(kinds, features, kernel, (1, 1, 1), wanted)
        return Gradients([] if to_features is None else [to_features], to_kernel, summed(gradient))


def packed_kernel(kernel: torch.Tensor) -> torch.Tensor:
    """The kernel for packed maps, (8 * results, 8 * channels, 3, 3, 3), of (results, channels, 3, 3, 3)."""
    # along an axis: the voxel of the result, that of what is read, and its block: which of the three taps reaches it
    taps = kernel.new_zeros(2, 2, 3, 3)
    for own, tap in product(range(2), range(3)):
        place = own + tap - 1
        taps[own, place % 2, place // 2 + 1, tap] = 1
    whole = torch.einsum("oixyz,aupx,bvqy,cwrz->oabciuvwpqr", kernel, taps, taps, taps)
    return whole.flatten(4, 7).flatten(0, 3)


@dataclass(frozen=True)
class PackedHalving:
    """A convolution with kernel 3, stride 2 and padding 1 of a map with even sides; it takes a `halving_kernel`."""

    def forward(self, parts: Maps, kernel: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """See `Convolving.forward`."""
        return functional.conv3d(_with_previous(parts), kernel, bias)

    def backward(self, gradient: torch.Tensor, parts: Maps, kernel: torch.Tensor, wanted: Wanted) -> Gradients:
        """See `Convolving.backward`."""
        assert wanted.added is None
        to_blocks, to_kernel = back(gradient, _with_previous(parts), kernel, (0, 0, 0), wanted)
        own = [] if to_blocks is None else [unpacked(to_blocks[:, :, 1:, 1:, 1:])]
        return Gradients(own, to_kernel, summed(gradient))


def _with_previous(parts: Maps) -> torch.Tensor:
    """The packed map, with a border of air in front, which the first voxels of the result reach."""
    [features] = parts
    return functional.pad(packed_map(features), (1, 0) * 3).contiguous(memory_format=torch.channels_last_3d)


def halving_kernel(kernel: torch.Tensor) -> torch.Tensor:
    """The kernel for packed maps, (results, 8 * channels, 2, 2, 2), of (results, channels, 3, 3, 3) in strides of 2."""
    taps = kernel.new_zeros(2, 2, 3)  # as in `packed_kernel`, of even voxels, which no later block reaches
    for tap in range(3):
        taps[(tap - 1) % 2, (tap - 1) // 2 + 1, tap] = 1
    return torch.einsum("oixyz,upx,vqy,wrz->oiuvwpqr", kernel, taps, taps, taps).flatten(1, 4)


def packed_map(features: torch.Tensor) -> torch.Tensor:
    """The packed map (patches, 8 * channels, x, y, z) of (patches, channels, 2 x, 2 y, 2 z); channels lie together."""
    x, y, z = (side // 2 for side in features.shape[2:])
    pairs = features.contiguous().view(_PAIRS[features.element_size()]).unflatten(3, (y, 2)).unflatten(2, (x, 2))
    result = pairs.new_empty(len(features), x, y, z, features.shape[1], 2, 2)
    for first, second in product(range(2), range(2)):  # far quicker than all at once
        result[..., first, second] = pairs[:, :, :, first, :, second].permute(0, 2, 3, 4, 1)
    return result.view(features.dtype).flatten(4).permute(0, 4, 1, 2, 3)


def unpacked(packed: torch.Tensor) -> torch.Tensor:
    """The map (patches, channels, 2 x, 2 y, 2 z) of a packed one (patches, 8 * channels, x, y, z)."""
    values = packed.permute(0, 2, 3, 4, 1).contiguous().view(_PAIRS[packed.element_size()])
    values = values.unflatten(4, (-1, 2, 2)).permute(0, 4, 1, 5, 2, 6, 3).contiguous()
    return values.view(packed.dtype).flatten(4, 5).flatten(2, 3)


def unpack(packed: torch.Tensor) -> torch.Tensor:
    """`unpacked`, with a gradient."""
    result: torch.Tensor = _Unpacked.apply(packed)
    return result


class _Unpacked(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, packed: torch.Tensor) -> torch.Tensor:
        return unpacked(packed)

    @staticmethod
    @once_differentiable
    def backward(context: Any, gradient: torch.Tensor) -> torch.Tensor:
        return packed_map(gradient)


def normalised_packed(packed: torch.Tensor, following: Following) -> torch.Tensor:
    """What follows a convolution, of a packed map; its weights are those of the map's own channels."""
    norm, activation = following.norm, following.activation
    kind = torch.promote_types(packed.dtype, torch.float32)
    weight, bias, slope = (each.to(kind) for each in (norm.weight, norm.bias, activation.weight))
    result: torch.Tensor = _Normalised.apply(packed, weight, bias, slope, norm.eps)
    return result


class _Normalised(torch.autograd.Function):
    """Instance normalisation and a PReLU of one slope of a packed map; only what they read is kept.

    The formulas of `fl_app.training.normalising`, with torch's batch normalisation, which knows packed channels only:
    the sums over a channel are those of its eight.
    """

    @staticmethod
    def forward(
        context: Any,
        features: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor,
        slope: torch.Tensor,
        smallest: float,
    ) -> torch.Tensor:
        channels, sides = len(weight), features[0, 0].numel()
        weights, biases = weight.repeat_interleave(VOXELS), bias.repeat_interleave(VOXELS)
        result, mean, inverse = torch.native_group_norm(
            features, weights, biases, len(features), features.shape[1], sides, channels, smallest
        )
        context.save_for_backward(features, weight, bias, slope, mean, inverse)
        return functional.leaky_relu_(result, float(slope))

    @staticmethod
    @once_differentiable
    def backward(context: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        features, weight, bias, slope, averages, inverses = context.saved_tensors
        totals, steeper, found = weight.new_zeros(2, len(weight)), weight.new_zeros(()), []
        count = VOXELS * features[0, 0].numel()
        weights, biases = weight.repeat_interleave(VOXELS), bias.repeat_interleave(VOXELS)
        for patch, upstream, mean, inverse in zip(
            features.split(1), gradient.split(1), averages.to(weight), inverses.to(weight), strict=True
        ):
            means, variances = mean.repeat_interleave(VOXELS), inverse.repeat_interleave(VOXELS) ** -2
            scaled = functional.batch_norm(patch, means, variances, weights, biases, eps=0.0)
            rise = torch.ops.aten.leaky_relu_backward(upstream, scaled, float(slope), False)
            steeper += scaled.clamp_(max=0).mul_(upstream).sum(dtype=weight.dtype)
            to_patch, along, level = torch.ops.aten.native_batch_norm_backward(
                rise, patch, weights, means, variances, None, None, False, 0.0, [True, True, True]
            )
            own = torch.stack([along, level]).view(2, -1, VOXELS).sum(2)
            totals += own
            # what is left of the formula is a line in the normalised x, as a batch normalisation is
            line = [(-part * weight * inverse / count).repeat_interleave(VOXELS) for part in own]
            found.append(to_patch.add_(functional.batch_norm(patch, means, variances, line[0], line[1], eps=0.0)))
        return torch.cat(found) if len(found) > 1 else found[0], totals[0], totals[1], steeper.view(1), None
