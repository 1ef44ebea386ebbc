"""Blocks that hold less while they are trained: MONAI's, with the same names and weights, and the same results up to
rounding. `fl_app.training.recompute` puts them in.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from monai.networks.blocks.acti_norm import ADN
from monai.networks.blocks.convolutions import Convolution, ResidualUnit
from monai.networks.layers.simplelayers import SkipConnection
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from fl_app.training.layers import FEW_CHANNELS, GuardedConv3d, QuickConvTranspose3d, computed_on_cpu
from fl_app.training.slabs import LEAST_ROWS, as_computed, convolved, slabs

_SLAB_VALUES = {"cpu": 2**16, "cuda": 2**20}  # that are computed at a time at least; in fp32
_SLABS = {"cpu": 32, "cuda": 8}  # at most; a GPU is slow with small ones


class _NormalisedSlope(torch.autograd.Function):
    """Instance normalisation and a PReLU, of which only the features x are kept; they are overwritten.

    With n = (x - mean x) / deviation of x, z = w n + b, y = max(z, 0) + s min(z, 0), and g the gradient of y: s has
    that of sum g min(z, 0). With u = g where z > 0, else s g: w has that of sum u n, b of sum u, and x of
    w (u - mean u - n mean(u n)) / deviation (Ioffe and Szegedy, ICML 2015, section 3; over a channel of a patch).
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
        parts = [
            torch.native_batch_norm(patch, weight, bias, None, None, True, 0.0, smallest) for patch in features.split(1)
        ]
        context.save_for_backward(features, weight, bias, slope, *(value for _, *values in parts for value in values))
        patches = [functional.leaky_relu_(each, float(slope)) for each, *_ in parts]
        return torch.cat(patches) if len(patches) > 1 else patches[0]

    @staticmethod
    @once_differentiable
    def backward(context: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        features, weight, bias, slope, *statistics = context.saved_tensors
        steeper = statistics[0].new_zeros(())
        totals = statistics[0].new_zeros(2, len(weight))
        for number, (patch, upstream) in enumerate(zip(features, gradient, strict=True)):
            mean, inverse = (each.view(-1, 1, 1, 1) for each in statistics[2 * number : 2 * number + 2])
            affine = _Affine(mean, inverse * weight.view(-1, 1, 1, 1), bias.view(-1, 1, 1, 1), float(slope))
            own = torch.zeros_like(totals)
            for part in _slabs(patch):
                centred, bent, rise = affine.slab(patch[:, part], upstream[:, part])
                steeper += bent.sum()
                own[0] += rise.sum((1, 2, 3))
                own[1] += centred.mul_(rise).sum((1, 2, 3))
                del centred, bent, rise  # before the next ones are made
            own[1] *= inverse.flatten()
            totals += own
            level, along = (own / patch[0].numel()).view(2, -1, 1, 1, 1)
            for part in _slabs(patch):
                centred, bent, rise = affine.slab(patch[:, part], upstream[:, part])
                rise.sub_(level).addcmul_(centred, along * inverse, value=-1)
                patch[:, part] = rise.mul_(affine.steepness)
                del centred, bent, rise
        return features, totals[1], totals[0], steeper.view(1), None


@dataclass(frozen=True)
class _Affine:
    """How features become what the PReLU reads, z = (x - mean) * steepness + shift, and its slope below zero."""

    mean: torch.Tensor
    steepness: torch.Tensor
    shift: torch.Tensor
    slope: float

    def slab(self, part: torch.Tensor, gradient: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Of a slab x - mean, g min(z, 0), and u; in fp32, as the mean is."""
        centred = part - self.mean
        scaled = torch.addcmul(self.shift, centred, self.steepness)
        # of two layouts torch's operators read one value at a time
        upstream = torch.empty_like(centred).copy_(gradient)
        rise = torch.ops.aten.leaky_relu_backward(upstream, scaled, self.slope, False)
        return centred, scaled.clamp_(max=0).mul_(upstream), rise


def _slabs(patch: torch.Tensor) -> Iterator[slice]:
    device, values = patch.device.type, patch.numel()
    return slabs(patch, 1, max(_SLAB_VALUES[device], -(-values // _SLABS[device])))


class LeanADN(ADN):
    """Normalisation and activation."""

    @property
    def is_lean(self) -> bool:
        """Whether this is what can be computed together: an instance normalisation and a PReLU of one slope."""
        layers = [each for each in self if not (isinstance(each, nn.modules.dropout._DropoutNd) and not each.p)]
        if len(layers) != 2:
            return False
        norm, activation = layers
        return (
            isinstance(norm, nn.InstanceNorm3d)
            and norm.affine
            and not norm.track_running_stats
            and isinstance(activation, nn.PReLU)
            and activation.num_parameters == 1
        )

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """As `ADN`."""
        if not (torch.is_grad_enabled() and self.is_lean):
            result: torch.Tensor = super().forward(input)
            return result
        layers: dict[str, Any] = dict(self.named_children())
        norm = layers["N"]
        lean: torch.Tensor = _NormalisedSlope.apply(input, norm.weight, norm.bias, layers["A"].weight, norm.eps)
        return lean


class LeanResidualUnit(ResidualUnit):
    """A residual unit that adds in place."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """As `ResidualUnit`."""
        residual: torch.Tensor = self.residual(x)
        features: torch.Tensor = self.conv(x)
        last = list(self.conv[-1].children())[-1]
        overwritten = isinstance(last, nn.Conv3d) or (isinstance(last, LeanADN) and last.is_lean)
        return features.add_(residual) if overwritten else features + residual


class LeanSkip(SkipConnection):
    """A skip connection that leaves what it joins in two parts, for a block that takes them so."""

    def forward(self, x: torch.Tensor) -> Any:
        """As `SkipConnection`, but for the joining in training."""
        return (x, self.submodule(x)) if torch.is_grad_enabled() else super().forward(x)


class LeanConvolution(Convolution):
    """A convolution that also takes its map in parts whose channels follow each other."""

    def forward(self, *parts: torch.Tensor) -> torch.Tensor:
        """As `Convolution` of the parts in one."""
        first, *others = self.children()
        if len(parts) > 1 and isinstance(first, QuickConvTranspose3d):
            features = first.of_parts(parts)
        else:
            features = first(torch.cat(parts, 1) if len(parts) > 1 else parts[0])
        for layer in others:
            features = layer(features)
        return features


class LeanUp(nn.Sequential):
    """Blocks, the first of which takes its map in parts."""

    def forward(self, *parts: torch.Tensor) -> torch.Tensor:
        """As `torch.nn.Sequential` of the parts in one."""
        first, *others = self
        features: torch.Tensor = first(*parts)
        for block in others:
            features = block(features)
        return features


class SlabbedConv3d(GuardedConv3d):
    """A convolution to few channels, which a CPU computes without a copy of the result in another layout."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """As `torch.nn.Conv3d`."""
        ones = (1, 1, 1)
        found = (self.kernel_size, self.stride, self.padding, self.dilation, self.groups)
        large = min(input.shape[2:]) >= LEAST_ROWS
        if found != ((3, 3, 3), ones, ones, ones, 1) or not large or not computed_on_cpu(input):
            return super().forward(input)
        bias = self.weight.new_zeros(self.out_channels) if self.bias is None else self.bias
        return convolved(*as_computed(input, self.weight, bias))


def make_lean(block: nn.Module) -> None:
    """Turn what a block is made of into the classes above, in place."""
    for inner in block.modules():
        if type(inner) is ADN:
            inner.__class__ = LeanADN
        elif type(inner) is GuardedConv3d and inner.out_channels <= FEW_CHANNELS:
            inner.__class__ = SlabbedConv3d


def may_lose_logits(network: nn.Module) -> bool:
    """Whether a network is so lean that its loss may write over the logits, too.

    Others hold the most where the backward pass begins: the memory model of networks of cells relies on it.
    """
    return any(isinstance(each, LeanSkip) for each in network.modules())
