"""Blocks that hold less while they are trained: MONAI's, with the same names and weights, and the same results up to
rounding. `fl_app.training.recompute` puts them in.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from monai.networks.blocks.acti_norm import ADN
from monai.networks.blocks.convolutions import Convolution, ResidualUnit
from monai.networks.layers.simplelayers import SkipConnection
from torch import nn
from torch.utils.checkpoint import checkpoint

from fl_app.training.blocks import Following, Sharing, block, following_of
from fl_app.training.layers import GuardedConv3d, QuickConvTranspose3d
from fl_app.training.normalising import Normalised


class LeanADN(ADN):
    """Normalisation and activation."""

    @property
    def following(self) -> Following | None:
        """Both, if they can be computed together: an instance normalisation and a PReLU of one slope."""
        return following_of(self)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """As `ADN`."""
        found = self.following if torch.is_grad_enabled() else None
        if found is None:
            result: torch.Tensor = super().forward(input)
            return result
        norm = found.norm
        lean: torch.Tensor = Normalised.apply(input, norm.weight, norm.bias, found.activation.weight, norm.eps)
        return lean


class LeanConvolution(Convolution):
    """A convolution that also takes its map in parts whose channels follow each other.

    Attributes:
        sharing: who else needs what it is given.
    """

    sharing = Sharing()

    @property
    def is_lean(self) -> bool:
        """Whether it keeps nothing but the parts by itself."""
        first, *others = self.children()
        return isinstance(first, QuickConvTranspose3d) and all(_following(each) for each in others)

    def forward(self, *parts: torch.Tensor) -> torch.Tensor:
        """As `Convolution` of the parts in one."""
        parts = as_parts(parts)
        first, *others = self.children()
        up = first if len(parts) > 1 and isinstance(first, QuickConvTranspose3d) else None
        if up is not None and not up.is_exact_for(parts[0].shape[2:]):
            following = _following(others.pop(0)) if self.is_lean and others else None
            features = block(*up.as_function(parts[0]), parts, following, self.sharing)
        else:
            features = first(torch.cat(parts, 1) if len(parts) > 1 else parts[0])
        for layer in others:
            features = layer(features)
        return features


class LeanResidualUnit(ResidualUnit):
    """A residual unit that adds in place."""

    @property
    def is_lean(self) -> bool:
        """Whether its convolutions keep nothing but what they read."""
        return all(
            isinstance(first, GuardedConv3d) and first.groups == 1 and all(_following(each) for each in others)
            for first, *others in (unit.children() for unit in self.conv)
        )

    def forward(self, x: torch.Tensor, remake: Callable[[], torch.Tensor] | None = None) -> torch.Tensor:
        """As `ResidualUnit`; ``remake`` computes what it reads once more, which is then not kept."""
        if torch.is_grad_enabled() and self.is_lean and self._is_large(x):
            return self._lean(x, remake)
        residual: torch.Tensor = self.residual(x)
        features: torch.Tensor = self.conv(x)
        last = list(self.conv[-1].children())[-1]
        overwritten = isinstance(last, nn.Conv3d) or _following(last)
        return features.add_(residual) if overwritten else features + residual

    def _lean(self, x: torch.Tensor, remake: Callable[[], torch.Tensor] | None) -> torch.Tensor:
        adds = len(self.conv) == 1 and isinstance(self.residual, nn.Identity)
        residual = None if adds else self.residual(x)
        features, sharing = x, Sharing(remake=remake) if adds else Sharing()
        for unit in self.conv:
            first, *others = unit.children()
            following = _following(others[0]) if others else None
            convolving, kernel, bias = cast(GuardedConv3d, first).as_function(features)
            features = block(convolving, kernel, bias, [features], following, sharing, adds)
            sharing = Sharing((True,))
        return features if residual is None else features.add_(residual)

    def _is_large(self, x: torch.Tensor) -> bool:
        """Whether none of its convolutions computes in fp32."""
        sides = list(x.shape[2:])
        for first, *_ in (unit.children() for unit in self.conv):
            if first.is_exact_for(sides):
                return False
            sides = first.sides_of_result(sides)
        return True


def _following(layer: nn.Module) -> Following | None:
    return layer.following if isinstance(layer, LeanADN) else None


class LeanSkip(SkipConnection):
    """A skip connection that leaves what it joins in two parts, for a block that takes them so."""

    def forward(self, x: torch.Tensor) -> Any:
        """As `SkipConnection`, but for the joining in training."""
        return (x, self.submodule(x)) if torch.is_grad_enabled() else super().forward(x)


def as_parts(inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """What a block is called with; a `LeanSkip` before it gives all of it as one."""
    return inputs[0] if inputs and isinstance(inputs[0], tuple) else inputs


class LeanUp(nn.Sequential):
    """Two blocks, the first of which takes its map in parts; what is between is computed again."""

    @property
    def is_lean(self) -> bool:
        """Whether it keeps nothing but the parts by itself."""
        kinds = (LeanConvolution, LeanResidualUnit)
        return len(self) == 2 and all(isinstance(*each) and each[0].is_lean for each in zip(self, kinds, strict=True))

    def forward(self, *parts: torch.Tensor) -> torch.Tensor:
        """As `torch.nn.Sequential` of the parts in one."""
        parts = as_parts(parts)
        first, *others = self
        features: torch.Tensor = first(*parts)
        if self.is_lean:
            return others[0](features, _again(first, parts))
        for each in others:
            features = each(features)
        return features


def _again(layer: nn.Module, parts: Sequence[torch.Tensor]) -> Callable[[], torch.Tensor]:
    """Computes what a layer gives once more, in the precision that holds now."""
    device = parts[0].device.type
    kind, enabled = torch.get_autocast_dtype(device), torch.is_autocast_enabled(device)

    def remake() -> torch.Tensor:
        with torch.no_grad(), torch.autocast(device, kind, enabled, cache_enabled=False):
            again: torch.Tensor = layer(*parts)
            return again

    return remake


class LeanLevel(nn.Sequential):
    """A U-Net's first level, whose first block is computed from the image once more for the second one.

    So what it gives is not kept while the levels below have their backward passes.
    """

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """As `torch.nn.Sequential`."""
        if not torch.is_grad_enabled():
            result: torch.Tensor = super().forward(image)
            return result
        down, skip, up = self
        below = cast(nn.Module, skip.submodule)
        first, *others = below if isinstance(below, nn.Sequential) else [below]

        def computed(image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            maps = down(image)
            return maps, first(maps)

        maps, features = checkpoint(computed, image, use_reentrant=False)
        for each in others:
            features = each(features)
        result = up(maps, features)
        return result


def make_lean(module: nn.Module) -> None:
    """Turn what a block is made of into the classes above, in place."""
    for inner in module.modules():
        if type(inner) is ADN:
            inner.__class__ = LeanADN


def may_lose_logits(network: nn.Module) -> bool:
    """Whether a network is so lean that its loss may write over the logits, too.

    Others hold the most where the backward pass begins: the memory model of networks of cells relies on it.
    """
    return any(isinstance(each, LeanSkip) for each in network.modules())
