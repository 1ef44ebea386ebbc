"""What networks of a search space are made of: the stems, the cells (change resolution, then compute), the head."""

from __future__ import annotations

import torch
from monai.networks.blocks.dints_block import FactorizedReduceBlock, P3DActiConvNormBlock
from torch import nn
from torch.nn import functional

from fl_app.networks.space.topology import Edge

_KERNELS = {
    "conv_3x3x3": (3, 3, 3),
    "conv_3x3x1": (3, 3, 1),
    "conv_3x1x3": (3, 1, 3),
    "conv_1x3x3": (1, 3, 3),
}
# MONAI's mode of each anisotropic pair of kernels
_PSEUDO = {"pseudo_3x3x1": 0, "pseudo_3x1x3": 1, "pseudo_1x3x3": 2}


class ConvolutionBlock(nn.Sequential):
    """ReLU, convolution, instance normalisation.

    As MONAI's ``ActiConvNormBlock``, which knows cubic kernels only.
    """

    def __init__(self, inputs: int, outputs: int, kernel: tuple[int, int, int]) -> None:
        super().__init__()
        self.add_module("acti", nn.ReLU())
        padding = (kernel[0] // 2, kernel[1] // 2, kernel[2] // 2)
        self.add_module("conv", nn.Conv3d(inputs, outputs, kernel, padding=padding, bias=False))
        self.add_module("norm", nn.InstanceNorm3d(outputs, affine=True))


class IncreaseBlock(nn.Sequential):
    """Double the resolution: ReLU, 1x1x1 convolution, trilinear interpolation, instance normalisation.

    MONAI's ``FactorizedIncreaseBlock`` interpolates first, which keeps twice the channels at eight times the voxels
    for the backward pass; interpolation and a 1x1x1 convolution commute, so this costs a third of the memory.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.add_module("acti", nn.ReLU())
        self.add_module("conv", nn.Conv3d(inputs, outputs, 1, bias=False))
        self.add_module("up", nn.Upsample(scale_factor=2, mode="trilinear", align_corners=True))
        self.add_module("norm", nn.InstanceNorm3d(outputs, affine=True))


def build_preprocess(edge: Edge, inputs: int, outputs: int) -> nn.Module:
    """What brings an edge's features to its target's resolution and channels."""
    if edge.source == edge.target:
        return nn.Identity()
    if edge.source > edge.target:
        return IncreaseBlock(inputs, outputs)
    return FactorizedReduceBlock(inputs, outputs)


def build_operation(name: str, channels: int) -> nn.Module:
    """An operation of a cell, by its name in `fl_app.config.space.Operation`; it keeps resolution and channels."""
    if name == "skip":
        return nn.Identity()
    if name in _KERNELS:
        return ConvolutionBlock(channels, channels, _KERNELS[name])
    return P3DActiConvNormBlock(channels, channels, kernel_size=3, padding=1, mode=_PSEUDO[name])


class Cell(nn.Module):
    """One edge: preprocessing, and the operations that it can compute, by name."""

    def __init__(self, edge: Edge, inputs: int, outputs: int, operations: tuple[str, ...]) -> None:
        super().__init__()
        self.preprocess = build_preprocess(edge, inputs, outputs)
        self.operations = nn.ModuleDict({name: build_operation(name, outputs) for name in operations})

    def forward(self, features: torch.Tensor, operation: str) -> torch.Tensor:
        """Features at the target's resolution after one operation."""
        result: torch.Tensor = self.operations[operation](self.preprocess(features))
        return result

    def forward_mixed(self, features: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """The sum over all operations, each times its weight (in the operations' order)."""
        features = self.preprocess(features)
        results = (operation(features) for operation in self.operations.values())
        mixed: torch.Tensor = sum(weight * result for weight, result in zip(weights, results, strict=True))
        return mixed


class StemDown(nn.Module):
    """The image, averaged to a resolution, then a convolution to its channels (stride 2 with a downsampling stem)."""

    def __init__(self, depth: int, channels: int, stride: int) -> None:
        super().__init__()
        self.shrink = 2**depth
        self.conv = nn.Conv3d(1, channels, 3, stride=stride, padding=1, bias=False)
        self.norm = nn.InstanceNorm3d(channels, affine=True)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """(batch, 1, x, y, z) to (batch, channels, x / s, y / s, z / s) with s = 2^depth * stride."""
        if self.shrink > 1:
            image = functional.avg_pool3d(image, self.shrink)
        result: torch.Tensor = self.norm(self.conv(image))
        return result


class Head(nn.Module):
    """The finest features to logits at the patch's resolution.

    With a downsampling stem a transposed convolution doubles the resolution (kernel 4, so that neighbours overlap
    and no chequerboard shows); nothing but the logits is ever kept at the patch's own resolution.
    """

    def __init__(self, channels: int, logits: int, doubles: bool) -> None:
        super().__init__()
        self.conv = (
            nn.ConvTranspose3d(channels, logits, 4, stride=2, padding=1)
            if doubles
            else nn.Conv3d(channels, logits, 3, padding=1)
        )

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """(batch, channels, x, y, z) to (batch, logits, 2x, 2y, 2z), or (batch, logits, x, y, z)."""
        result: torch.Tensor = self.conv(functional.relu(features))
        return result


class StemUp(ConvolutionBlock):
    """Behind the last block, double the resolution: ReLU, 3x3x3 convolution, normalisation, interpolation (DiNTS)."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, (3, 3, 3))
        self.add_module("up", nn.Upsample(scale_factor=2, mode="trilinear", align_corners=True))
