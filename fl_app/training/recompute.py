"""Train in less memory: what a block computes is not kept for the backward pass, but computed again when it comes.

Gradient checkpointing (Chen et al., arXiv:1604.06174), by `torch.utils.checkpoint`: the same gradients, for the time of
another forward pass. In MONAI's U-Net the blocks are the lean ones besides (`fl_app.training.lean`), whose gradients
are the same up to rounding.
"""

from __future__ import annotations

from functools import partial
from itertools import pairwise
from typing import Any

import torch
from monai.networks.blocks.convolutions import Convolution, ResidualUnit
from monai.networks.blocks.dynunet_block import UnetBasicBlock, UnetResBlock, UnetUpBlock
from monai.networks.blocks.segresnet_block import ResBlock
from monai.networks.blocks.transformerblock import TransformerBlock
from monai.networks.blocks.unetr_block import UnetrBasicBlock, UnetrPrUpBlock, UnetrUpBlock
from monai.networks.layers.simplelayers import SkipConnection
from monai.networks.nets.dints import Cell as MonaiCell
from monai.networks.nets.swin_unetr import SwinTransformerBlock
from torch import nn
from torch.utils.checkpoint import checkpoint

from fl_app.networks.space.cells import Cell, StemDown, StemUp
from fl_app.training.adapting import QuickUp
from fl_app.training.blocks import Sharing
from fl_app.training.lean import LeanConvolution, LeanLevel, LeanResidualUnit, LeanSkip, LeanUp, as_parts, make_lean

_BLOCKS = (
    ResidualUnit,
    Convolution,
    UnetBasicBlock,
    UnetResBlock,
    UnetUpBlock,
    ResBlock,
    TransformerBlock,
    UnetrBasicBlock,
    UnetrPrUpBlock,
    UnetrUpBlock,
    MonaiCell,
    Cell,
    StemDown,
    StemUp,
    SwinTransformerBlock,
    LeanUp,
)


def _recomputed(kind: type[nn.Module]) -> type[nn.Module]:
    """The class of a block that keeps nothing but its input."""

    def forward(self: nn.Module, *inputs: Any, **named: Any) -> Any:
        inputs = as_parts(inputs)
        computed = partial(kind.forward, self)
        if not torch.is_grad_enabled():
            return computed(*inputs, **named)
        return checkpoint(computed, *inputs, use_reentrant=False, **named)

    return type(f"Recomputed{kind.__name__}", (kind,), {"forward": forward})


_LEAN: dict[type[nn.Module], type[nn.Module]] = {Convolution: LeanConvolution, ResidualUnit: LeanResidualUnit}
_RECOMPUTED: dict[type[nn.Module], type[nn.Module]] = {kind: _recomputed(_LEAN.get(kind, kind)) for kind in _BLOCKS}
_RECOMPUTED |= {lean: _RECOMPUTED[kind] for kind, lean in _LEAN.items()}


def recompute(network: nn.Module) -> nn.Module:
    """Have a network's blocks computed again in the backward pass, in place; names and weights stay.

    Not for networks with batch normalisation, which would count each batch twice.
    """
    _recompute(network, is_outermost=True)
    return network


def _recompute(network: nn.Module, is_outermost: bool) -> None:
    children = list(network.children())
    is_level = False
    for skip, up in pairwise(children):
        first = next(iter(up)) if isinstance(up, nn.Sequential) and type(up) in (nn.Sequential, QuickUp) else up
        if type(skip) is SkipConnection and skip.mode == "cat" and skip.dim == 1 and type(first) is Convolution:
            skip.__class__ = LeanSkip
            if up is not first:
                up.__class__ = LeanUp
            is_level = type(network) is nn.Sequential and len(children) == 3
            _make_lean_up(up, owns_skip=is_level and is_outermost)
    if is_level and is_outermost:
        network.__class__ = LeanLevel
    for child in children:
        if isinstance(child, LeanUp | LeanConvolution) and child.is_lean:
            continue
        if type(child) in _RECOMPUTED:
            for part in child if isinstance(child, LeanUp) else []:  # one by one, and all together
                part.__class__ = _RECOMPUTED.get(type(part), type(part))
            child.__class__ = _RECOMPUTED[type(child)]
            make_lean(child)
        elif type(child) not in _RECOMPUTED.values():  # of which a second time would compute the parts again, too
            _recompute(child, is_outermost and not is_level)


def _make_lean_up(up: nn.Module, owns_skip: bool) -> None:
    """Turn what is behind a skip connection into lean blocks, and say who else needs what they are given."""
    make_lean(up)
    first, *others = up if isinstance(up, LeanUp) else [up]
    first.__class__ = LeanConvolution
    assert isinstance(first, LeanConvolution)
    for other in others:
        other.__class__ = _LEAN.get(type(other), type(other))
    # a unit writes the gradient of what it reads where nobody else looks
    first.sharing = Sharing((owns_skip, True), over_gradient=isinstance(up, LeanUp) and up.is_lean)
