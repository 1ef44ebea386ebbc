"""Layers as networks are computed with here: right in mixed precision, and quick.

Each takes the place of one of torch's, with the same names and weights, and the same results up to rounding;
`fl_app.training.adapting` puts them in.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import nn
from torch.nn import functional

from fl_app.training.blocks import block
from fl_app.training.convolving import Convolving, Smoothing, Striding
from fl_app.training.packing import (
    PackedHalving,
    halving_kernel,
)
from fl_app.training.spilling import spills
from fl_app.training.transposing import Doubling, Transposing
from fl_app.training.whole_gpu import is_quick_for, normalised

LEAST_CHANNELS = 16  # channels that a CPU computes at once
FEW_CHANNELS = 4  # so few that what a CPU computes for nothing matters
# a CPU with matrix units (AMX), which one channel leaves empty; others compute it quickly as it is
HAS_TILES = bool(torch.cpu.get_capabilities().get("amx_bf16"))
LEAST_SIDE = 4  # of a packed map: where bf16 is wrong, it has less (`GuardedConv3d`)
_SLAB_VALUES = 2**16  # that are summed at a time


class GuardedConv3d(nn.Conv3d):
    """A convolution whose bf16 results and gradients are right on CPUs, too.

    There torch 2.13's bf16 weight gradient of a 3D convolution is garbage (uninitialised memory, no error)
    for maps of few voxels: kernel 3 with a first side of 2, kernel 5 with a first side of 2 to 4. With AMX the result
    is, too, if the last side becomes a single voxel in strides of more than one (pytorch/pytorch#169688). Such maps
    cost next to nothing, so they are computed in fp32. For flat maps whose planes are large it writes beyond its
    memory (`fl_app.training.spilling`).
    """

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """As `torch.nn.Conv3d`."""
        if self._is_quick_for(input):
            with torch.autocast("cpu", enabled=False):  # so that gradients are summed in fp32
                kernel = halving_kernel(self.weight)
            return block(PackedHalving(), kernel, self.bias, [input])
        spilling = _spills(self, input, input.shape[2:])
        if spilling and self.groups == 1:
            return block(*self.as_function(input), [input])
        if torch.is_autocast_enabled(input.device.type) and (spilling or self.is_exact_for(input.shape[2:])):
            with torch.autocast(input.device.type, enabled=False):
                bias = None if self.bias is None else self.bias.float()
                return self._conv_forward(input.float(), self.weight.float(), bias)
        result = super().forward(input)
        # what is added to few channels mostly lies as they came, and adding two layouts takes longer than this
        return result.contiguous() if self.out_channels < LEAST_CHANNELS and input.is_contiguous() else result

    def _is_quick_for(self, features: torch.Tensor) -> bool:
        """Whether packed maps are quicker (`fl_app.training.packing`): not in fp32."""
        if not HAS_TILES or not computed_on_cpu(features) or _kind_on_cpu(features).itemsize > 2:
            return False
        wanted = ((3, 3, 3), (2, 2, 2), (1, 1, 1), (1, 1, 1), 1, 1)
        found = (self.kernel_size, self.stride, self.padding, self.dilation, self.groups, self.in_channels)
        sides = features.shape[2:]
        large = min(sides) >= 2 * LEAST_SIDE and not any(side % 2 for side in sides)
        return found == wanted and large and self.out_channels >= LEAST_CHANNELS

    def is_exact_for(self, sides: Sequence[int]) -> bool:
        """Whether maps of these sides, in voxels, are computed in fp32."""
        return _is_tiny(self, sides) or (self.stride[-1] > 1 and self.sides_of_result(sides)[-1] == 1)

    def sides_of_result(self, sides: Sequence[int]) -> list[int]:
        """Voxels along each axis of what it makes of maps of these sides."""
        padding = cast(tuple[int, ...], self.padding)
        return [
            (sides[axis] + 2 * padding[axis] - self.dilation[axis] * (self.kernel_size[axis] - 1) - 1)
            // self.stride[axis]
            + 1
            for axis in range(3)
        ]

    @property
    def is_smoothing(self) -> bool:
        """Whether it has kernel 3, stride 1 and padding 1, but for groups."""
        found = (self.kernel_size, self.stride, self.padding, self.dilation)
        return found == ((3, 3, 3), (1, 1, 1), (1, 1, 1), (1, 1, 1))

    def as_function(self, features: torch.Tensor) -> tuple[Convolving, torch.Tensor, torch.Tensor | None]:
        """The same as a function of its own, with its kernel and bias, for maps that are no smaller than the kernel."""
        if self.is_smoothing:
            few = self.out_channels <= FEW_CHANNELS and computed_on_cpu(features)
            return Smoothing(few), self.weight, self.bias
        stride, padding, dilation = (cast(tuple[int, ...], each) for each in (self.stride, self.padding, self.dilation))
        return Striding(stride, padding, dilation), self.weight, self.bias


class _LearnedSlope(torch.autograd.Function):
    """PReLU with one slope w: max(x, 0) + w min(x, 0); its gradients are g or w g, and sum of g min(x, 0)."""

    @staticmethod
    def forward(context: Any, features: torch.Tensor, slope: torch.Tensor) -> torch.Tensor:
        context.save_for_backward(features)
        context.slope, context.type = float(slope), slope.dtype
        return nn.functional.leaky_relu(features, context.slope)

    @staticmethod
    def backward(context: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        (features,), (gradient,) = context.saved_tensors, gradients
        down = torch.empty_like(features)
        if gradient.stride() != features.stride():
            # of two layouts torch's operators read one value at a time
            gradient = down.copy_(gradient)
        steeper = torch.zeros(1, device=features.device)
        # slab by slab, since at this point a training step holds most
        slabs = max(1, features.numel() // _SLAB_VALUES)
        for upstream, part in zip(gradient.chunk(slabs, 2), features.chunk(slabs, 2), strict=True):
            steeper += (upstream * part.clamp(max=0)).sum(dtype=torch.float32)
        torch.ops.aten.leaky_relu_backward.grad_input(gradient, features, context.slope, False, grad_input=down)
        return down, steeper.to(context.type)


class QuickPReLU(nn.PReLU):
    """A PReLU with one slope that is several times faster on CPUs (``benchmarks/activation.py``).

    Attributes:
        in_place: whether nobody else needs the features, so that predictions may overwrite them.
    """

    in_place = False

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """As `torch.nn.PReLU`."""
        if self.num_parameters == 1 and computed_on_cpu(input):
            if self.in_place and not torch.is_grad_enabled():
                return functional.leaky_relu_(input, float(self.weight))
            result: torch.Tensor = _LearnedSlope.apply(input, self.weight)
            return result
        return super().forward(input)


class QuickInstanceNorm3d(nn.InstanceNorm3d):
    """An instance normalisation that keeps the layout of the maps, which torch's copies.

    On a CPU, of one patch it is a batch normalisation, for which torch has a kernel for maps whose channels lie next to
    each other; with few channels that one is slow. On a GPU all of it works on maps of many voxels
    (`fl_app.training.whole_gpu`).
    """

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """As `torch.nn.InstanceNorm3d`."""
        if is_quick_for(input) and not self.track_running_stats:
            return normalised(input, self.weight, self.bias, self.eps)
        layered = input.dim() == 5 and input.is_contiguous(memory_format=torch.channels_last_3d)
        if not layered or input.shape[1] < LEAST_CHANNELS or self.track_running_stats or not computed_on_cpu(input):
            return super().forward(input)
        patches = [
            functional.batch_norm(patch, None, None, self.weight, self.bias, training=True, eps=self.eps)
            for patch in input.split(1)
        ]
        return torch.cat(patches) if len(patches) > 1 else patches[0]


class QuickConvTranspose3d(nn.ConvTranspose3d):
    """A transposed convolution, guarded as convolutions are (`GuardedConv3d`).

    It is several times faster on CPUs where it doubles the sides and gives few channels.
    """

    def forward(self, input: torch.Tensor, output_size: list[int] | None = None) -> torch.Tensor:
        """As `torch.nn.ConvTranspose3d`."""
        if output_size is not None or not computed_on_cpu(input):
            return super().forward(input, output_size)
        spilling = _spills(
            self, input, [side * stride for side, stride in zip(input.shape[2:], self.stride, strict=True)]
        )
        if self.is_quick_for(input) or (spilling and self.groups == 1):
            return block(*self.as_function(input), [input])
        if torch.is_autocast_enabled(input.device.type) and (spilling or self.is_exact_for(input.shape[2:])):
            with torch.autocast(input.device.type, enabled=False):
                bias = None if self.bias is None else self.bias.float()
                return self._transposed(input.float(), self.weight.float(), bias)
        return super().forward(input)

    def is_exact_for(self, sides: Sequence[int]) -> bool:
        """Whether maps of these sides, in voxels, are computed in fp32."""
        return _is_tiny(self, sides) or (self.stride[-1] > 1 and sides[-1] == 1)

    def as_function(self, features: torch.Tensor) -> tuple[Convolving, torch.Tensor, torch.Tensor | None]:
        """The same for maps like these as a function of its own, with its kernel and bias."""
        if self.is_quick_for(features):
            return Doubling(self.out_channels), *self.doubled()
        stride, padding, dilation = (cast(tuple[int, ...], each) for each in (self.stride, self.padding, self.dilation))
        return Transposing(stride, padding, tuple(self.output_padding), dilation), self.weight, self.bias

    def _transposed(self, features: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        padding = cast(tuple[int, ...], self.padding), tuple(self.output_padding)
        return functional.conv_transpose3d(features, weight, bias, self.stride, *padding, self.groups, self.dilation)

    def is_quick_for(self, features: torch.Tensor) -> bool:
        """Whether it doubles the sides, gives few channels, and maps like these are computed on a CPU."""
        wanted = ((3, 3, 3), (2, 2, 2), (1, 1, 1), (1, 1, 1), (1, 1, 1), 1)
        found = (self.kernel_size, self.stride, self.padding, self.output_padding, self.dilation, self.groups)
        return found == wanted and self.out_channels <= FEW_CHANNELS and computed_on_cpu(features)

    def doubled(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Kernel and bias of the convolution of the small map that it is (`Doubling`), if it is quick so."""
        # of two neighbours in the small map: an even voxel takes the kernel's middle, an odd one its end and its start
        taken = self.weight.new_zeros(2, 2, 3)
        taken[0, 0, 1] = taken[1, 0, 2] = taken[1, 1, 0] = 1
        kernel = torch.einsum("ioxyz,aux,bvy,cwz->oabciuvw", self.weight, taken, taken, taken).flatten(0, 3)
        bias = self.weight.new_zeros(self.out_channels) if self.bias is None else self.bias
        return kernel, bias.repeat_interleave(8)


def _is_tiny(layer: nn.Conv3d | nn.ConvTranspose3d, sides: Sequence[int]) -> bool:
    return any(side < kernel for side, kernel in zip(sides, layer.kernel_size, strict=True))


def _spills(layer: nn.Conv3d | nn.ConvTranspose3d, input: torch.Tensor, sides: Sequence[int]) -> bool:
    if not torch.is_grad_enabled() or not computed_on_cpu(input):
        return False
    return spills(sides, (layer.in_channels, layer.out_channels), _kind_on_cpu(input), input.device)


def _kind_on_cpu(features: torch.Tensor) -> torch.dtype:
    """The type that a convolution of these maps is computed in."""
    return torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else features.dtype


def computed_on_cpu(features: torch.Tensor) -> bool:
    """Whether this is a computation on a CPU, rather than a network that is written down."""
    exported = torch.jit.is_tracing() or torch.compiler.is_compiling()  # type: ignore[attr-defined]
    return features.device.type == "cpu" and not exported
