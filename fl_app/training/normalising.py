"""Instance normalisation and a PReLU of one slope, computed together and slab by slab.

With n = (x - mean x) / deviation of x, z = w n + b, y = max(z, 0) + s min(z, 0), and g the gradient of y: s has
that of sum g min(z, 0). With u = g where z > 0, else s g: w has that of sum u n, b of sum u, and x of
w (u - mean u - n mean(u n)) / deviation (Ioffe and Szegedy, ICML 2015, section 3; over a channel of a patch).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.autograd.function import once_differentiable
from torch.nn import functional

from fl_app.training.slabs import slabs

_SLAB_VALUES = {"cpu": 3 * 2**13, "cuda": 2**20}  # that the backward pass computes at a time at least; in fp32
_SLABS = {"cpu": 64, "cuda": 8}  # at most; a GPU is slow with small ones
_FORWARD = 4  # times as many values: there are fewer maps of them


@dataclass(frozen=True)
class Affine:
    """What is learned.

    Attributes:
        weight: w, for each channel.
        bias: b, for each channel.
        slope: s, one value.
    """

    weight: torch.Tensor
    bias: torch.Tensor
    slope: torch.Tensor


def normalise(features: torch.Tensor, affine: Affine, smallest: float) -> list[torch.Tensor]:
    """Write y over x (patches, channels, x, y, z); ``smallest`` is added to the variance.

    Returns:
        The statistics: for each patch, one after the other, the mean of x and one over its deviation, by channel.
    """
    weight, bias, slope = affine.weight, affine.bias, float(affine.slope)
    statistics = []
    for patch in features.split(1):
        parts = [patch[:, :, rows] for rows in _slabs(patch[0], _FORWARD)]
        # the weights have torch compute in fp32
        found = [torch.native_batch_norm(part, weight, bias, None, None, True, 0.0, 0.0)[1:] for part in parts]
        shares = weight.new_tensor([part.numel() / patch.numel() for part in parts]).unsqueeze(1)
        means, inverses = (torch.stack(each) for each in zip(*found, strict=True))
        mean = (shares * means).sum(0)
        variance = (shares * (inverses**-2 + (means - mean) ** 2)).sum(0)  # loses no digits
        for part in parts:
            normalised = functional.batch_norm(part, mean, variance, weight, bias, eps=smallest)
            part.copy_(functional.leaky_relu_(normalised, slope))
        statistics += [mean, (variance + smallest).rsqrt()]
    return statistics


def normalise_back(
    features: torch.Tensor,
    gradient: torch.Tensor,
    affine: Affine,
    statistics: Sequence[torch.Tensor],
    result: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Write the gradient of x.

    Args:
        features: x.
        gradient: that of y.
        affine: what is learned.
        statistics: of x, as `normalise` gives them.
        result: where to write: the features, or the gradient.

    Returns:
        The gradients of w, b and s.
    """
    steeper = statistics[0].new_zeros(())
    totals = statistics[0].new_zeros(2, len(affine.weight))
    for number, (patch, upstream, written) in enumerate(zip(features, gradient, result, strict=True)):
        mean, inverse = (each.view(-1, 1, 1, 1) for each in statistics[2 * number : 2 * number + 2])
        weight, bias = (each.view(-1, 1, 1, 1) for each in (affine.weight, affine.bias))
        bent = _Bent(mean, inverse * weight, bias, float(affine.slope))
        own = torch.zeros_like(totals)
        for rows in _slabs(patch):
            centred, below, rise = bent.slab(patch[:, rows], upstream[:, rows])
            steeper += below.sum()
            own[0] += rise.sum((1, 2, 3))
            own[1] += centred.mul_(rise).sum((1, 2, 3))
            del centred, below, rise  # before the next ones are made
        own[1] *= inverse.flatten()
        totals += own
        level, along = (own / patch[0].numel()).view(2, -1, 1, 1, 1)
        for rows in _slabs(patch):
            centred, below, rise = bent.slab(patch[:, rows], upstream[:, rows])
            rise.sub_(level).addcmul_(centred, along * inverse, value=-1)
            written[:, rows] = rise.mul_(bent.steepness)
            del centred, below, rise
    return totals[1], totals[0], steeper.view(1)


@dataclass(frozen=True)
class _Bent:
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


def _slabs(patch: torch.Tensor, times: int = 1) -> Iterator[slice]:
    device, values = patch.device.type, patch.numel()
    return slabs(patch, 1, times * max(_SLAB_VALUES[device], -(-values // _SLABS[device])))


class Normalised(torch.autograd.Function):
    """Both as one function, of which only the features x are kept; they are overwritten with their gradient."""

    @staticmethod
    def forward(
        context: Any,
        features: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor,
        slope: torch.Tensor,
        smallest: float,
    ) -> torch.Tensor:
        """The new features y, which lie elsewhere."""
        parts = [
            torch.native_batch_norm(patch, weight, bias, None, None, True, 0.0, smallest) for patch in features.split(1)
        ]
        context.save_for_backward(features, weight, bias, slope, *(value for _, *values in parts for value in values))
        patches = [functional.leaky_relu_(each, float(slope)) for each, *_ in parts]
        return torch.cat(patches) if len(patches) > 1 else patches[0]

    @staticmethod
    @once_differentiable
    def backward(context: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """The gradients of all but the last of what `forward` took."""
        features, weight, bias, slope, *statistics = context.saved_tensors
        learned = normalise_back(features, gradient, Affine(weight, bias, slope), statistics, features)
        return features, *learned, None
