"""A fixed network of DiNTS's search space, for jobs that do not search."""

from __future__ import annotations

import contextlib
import io
from typing import Any

import numpy as np
from monai.networks.nets.dints import DiNTS, TopologyInstance
from torch import nn

# share of the paper's width, blocks and resolutions; large has the paper's space
_SIZES = {"small": (0.25, 4, 3), "medium": (0.5, 6, 3), "large": (1.0, 12, 4)}
_CONVOLUTION = 1  # 3 x 3 x 3, in MONAI's list of a cell's operations


def build_dints(size: str, classes: int, normalisation: tuple[str, dict[str, Any]]) -> nn.Module:
    """DiNTS (He et al., CVPR 2021) with 3 x 3 x 3 convolutions on every resolution, coarser in its first half of
    blocks and finer in its second: each block keeps all resolutions and joins neighbours in one direction.

    Args:
        size: small, medium or large; patches are multiples of 16, 16 or 32 voxels.
        classes: output channels.
        normalisation: MONAI's name and arguments.
    """
    width, blocks, depths = _SIZES[size]
    # MONAI's order of a block's edges: (up), same, down for each resolution that they lead to
    directions = ([-1, 0, 1] * depths)[1:-1]
    edges = np.array(
        [[float(way in (0, -1 if block < blocks // 2 else 1)) for way in directions] for block in range(blocks)]
    )
    operations = np.full(edges.shape, _CONVOLUTION)
    with contextlib.redirect_stdout(io.StringIO()):  # its constructor prints advice on patches
        space = TopologyInstance(
            arch_code=[edges, operations],
            channel_mul=width,
            num_blocks=blocks,
            num_depths=depths,
            norm_name=normalisation,
        )
    # numbers in place of tensors: what the network computes depends on them, and ONNX knows no such choice
    space.arch_code_a = edges
    every_node = [[True] * depths] * (blocks + 1)
    return DiNTS(space, in_channels=1, num_classes=classes, norm_name=normalisation, node_a=every_node)
