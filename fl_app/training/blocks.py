"""A convolution, and what follows it in a block, as one function that keeps nothing but what it reads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import nn
from torch.autograd.function import once_differentiable

from fl_app.training.convolving import Convolving, Smoothing, Wanted
from fl_app.training.normalising import Affine, normalise, normalise_back


@dataclass(frozen=True)
class Following:
    """What follows a convolution: an instance normalisation with weights, and a PReLU of one slope."""

    norm: nn.InstanceNorm3d
    activation: nn.PReLU


def following_of(layers: nn.Sequential) -> Following | None:
    """Both, if that is what these layers are, beside a dropout that drops nothing."""
    found = [each for each in layers if not (isinstance(each, nn.modules.dropout._DropoutNd) and not each.p)]
    if len(found) != 2:
        return None
    norm, activation = found
    if not isinstance(norm, nn.InstanceNorm3d) or not norm.affine or norm.track_running_stats:
        return None
    one_slope = isinstance(activation, nn.PReLU) and activation.num_parameters == 1
    return Following(norm, cast(nn.PReLU, activation)) if one_slope else None


@dataclass(frozen=True)
class Sharing:
    """Who else needs what a block is given; without more, others need all of it.

    Attributes:
        over: for each part whether nobody does, so that its gradient may be written over it; empty: others need all.
        over_gradient: whether nobody else needs the gradient of the result, so that it is overwritten.
        remake: computes the one part once more, which is then not kept; nobody else needs what it gives.
    """

    over: tuple[bool, ...] = ()
    over_gradient: bool = False
    remake: Callable[[], torch.Tensor] | None = None


@dataclass(frozen=True)
class _How:
    convolving: Convolving
    sharing: Sharing
    over: tuple[bool, ...]
    smallest: float
    adds: bool
    kind: torch.dtype

    def computed(self, kernel: torch.Tensor, bias: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor | None]:
        """What is learned, in the type that layers compute in."""
        return kernel.to(self.kind), None if bias is None else bias.to(self.kind)


def block(
    convolving: Convolving,
    kernel: torch.Tensor,
    bias: torch.Tensor | None,
    parts: Sequence[torch.Tensor],
    following: Following | None = None,
    sharing: Sharing | None = None,
    adds: bool = False,
) -> torch.Tensor:
    """Convolve maps; all tensors are taken as layers compute them under autocast.

    Args:
        convolving: how.
        kernel: as that takes it.
        bias: as that takes it.
        parts: maps (patches, channels, x, y, z) whose channels follow each other.
        following: what follows the convolution, which is then computed again in the backward pass.
        sharing: who else needs what this is given.
        adds: whether the first part is added to the result.
    """
    sharing = sharing or Sharing()
    device, kind = parts[0].device.type, kernel.dtype
    if torch.is_autocast_enabled(device):
        kind = torch.get_autocast_dtype(device)
    over = (True,) if sharing.remake else sharing.over or (False,) * len(parts)
    how = _How(convolving, sharing, over, following.norm.eps if following else 0.0, adds, kind)
    learned = (following.norm.weight, following.norm.bias, following.activation.weight) if following else (None,) * 3
    result: torch.Tensor = _Block.apply(how, kernel, bias, *learned, *(each.to(kind) for each in parts))
    return result


class _Block(torch.autograd.Function):
    @staticmethod
    def forward(
        context: Any,
        how: _How,
        kernel: torch.Tensor,
        bias: torch.Tensor | None,
        *others: torch.Tensor,
    ) -> torch.Tensor:
        learned, parts = others[:3], others[3:]
        kept = () if how.sharing.remake else parts
        context.how, context.count = how, len(kept)
        if how.sharing.remake and how.adds and learned[0] is None and isinstance(how.convolving, Smoothing):
            [features] = parts
            how.convolving.add(features, *how.computed(kernel, bias))
            context.mark_dirty(features)
            context.save_for_backward(kernel, bias, *learned)
            return features
        features = how.convolving.forward(parts, *how.computed(kernel, bias))
        statistics = [] if learned[0] is None else normalise(features, Affine(*learned), how.smallest)
        context.save_for_backward(kernel, bias, *learned, *kept, *statistics)
        return features.add_(parts[0]) if how.adds else features

    @staticmethod
    @once_differentiable
    def backward(context: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        how: _How = context.how
        del context.how  # which may hold maps as long as there is the loss
        kernel, bias, *others = context.saved_tensors
        learned, parts, statistics = others[:3], others[3 : 3 + context.count], others[3 + context.count :]
        if how.sharing.remake:
            parts = [how.sharing.remake().to(how.kind)]
        to_features = gradient
        to_learned: list[torch.Tensor | None] = [None, None, None]
        if learned[0] is not None:
            features = how.convolving.forward(parts, *how.computed(kernel, bias))
            to_features = gradient if how.sharing.over_gradient and not how.adds else features
            to_learned[:] = normalise_back(features, gradient, Affine(*learned), statistics, to_features)
            del features
        added = gradient if how.adds else None
        wanted = Wanted(any(context.needs_input_grad[6:]), context.needs_input_grad[1], how.over, added)
        found = how.convolving.backward(to_features, parts, kernel.to(how.kind), wanted)
        to_kernel = None if found.kernel is None else found.kernel.to(kernel.dtype)
        to_bias = None if bias is None else found.bias.to(bias.dtype)
        to_parts = found.parts if wanted.parts else [None] * len(parts)
        return None, to_kernel, to_bias, *to_learned, *to_parts
