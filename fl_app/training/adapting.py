"""Networks as they are computed with here: layers, and a U-Net's last block, in quick ways that give the same."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, cast

import torch
from monai.networks.blocks.acti_norm import ADN
from monai.networks.blocks.convolutions import Convolution, ResidualUnit
from torch import nn

from fl_app.training.blocks import block, following_of
from fl_app.training.convolving import Striding
from fl_app.training.layers import (
    LEAST_SIDE,
    GuardedConv3d,
    QuickConvTranspose3d,
    QuickInstanceNorm3d,
    QuickPReLU,
)
from fl_app.training.packing import VOXELS, PackedDoubling, normalised_packed, packed_kernel, unpack

_ADAPTED: dict[type[nn.Module], type[nn.Module]] = {
    nn.Conv3d: GuardedConv3d,
    nn.ConvTranspose3d: QuickConvTranspose3d,
    nn.InstanceNorm3d: QuickInstanceNorm3d,
    nn.PReLU: QuickPReLU,
}
_SMOOTHING = Striding((1, 1, 1), (1, 1, 1), (1, 1, 1))


class QuickUp(nn.Sequential):
    """A U-Net's last block, a transposed convolution and a residual unit, which is quicker on CPUs in packed maps."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """As `torch.nn.Sequential`."""
        up, unit = cast("Sequence[Any]", self)
        doubling, following = up.conv, following_of(up.adn)
        quick = doubling.is_quick_for(input) and min(input.shape[2:]) >= LEAST_SIDE
        if following is None or not quick:
            result: torch.Tensor = super().forward(input)
            return result
        last = unit.conv[0].conv
        with torch.autocast(input.device.type, enabled=False):  # so that gradients are summed in fp32
            kernel, bias = doubling.doubled()
            last_kernel = packed_kernel(last.weight)
            last_bias = None if last.bias is None else last.bias.repeat_interleave(VOXELS)
        features = normalised_packed(block(PackedDoubling(), kernel, bias, [input]), following)
        return unpack(block(_SMOOTHING, last_kernel, last_bias, [features], adds=True))


def _is_last_up(module: nn.Module) -> bool:
    """Whether this is what `QuickUp` computes."""
    if type(module) is not nn.Sequential or [type(each) for each in module] != [Convolution, ResidualUnit]:
        return False
    up, unit = cast("Sequence[Any]", module)
    if [type(each) for each in up.children()] != [QuickConvTranspose3d, ADN] or len(unit.conv) != 1:
        return False
    inner = list(unit.conv[0].children())
    smooth = [type(each) for each in inner] == [GuardedConv3d] and inner[0].is_smoothing and inner[0].groups == 1
    return smooth and isinstance(unit.residual, nn.Identity) and following_of(up.adn) is not None


def adapt_layers(network: nn.Module) -> nn.Module:
    """Turn a network's layers into the ones above, in place; names and weights stay."""
    for module in network.modules():
        module.__class__ = _ADAPTED.get(type(module), type(module))
    for module in network.modules():
        if _is_last_up(module):
            module.__class__ = QuickUp
        if isinstance(module, ADN):
            layers = [each for each in module if not isinstance(each, nn.modules.dropout._DropoutNd)]
            for before, after in pairwise(layers):
                if isinstance(after, QuickPReLU):  # normalisation makes new features
                    after.in_place = isinstance(before, nn.modules.instancenorm._InstanceNorm)
    return network
