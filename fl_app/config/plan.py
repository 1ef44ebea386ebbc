"""How nnU-Net's rules plan a U-Net: a pure function of a patch and its spacing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

_LEAST_SIDE = 4  # voxels of an innermost map, along every axis that is halved


@dataclass(frozen=True)
class Plan:
    """The levels of a U-Net, outermost first; the innermost is the bottleneck.

    Attributes:
        kernels: side of the convolutions' kernels at each level, for each axis (1 or 3).
        strides: by how much each level is coarser than the one before it, for each axis (1 or 2).
    """

    kernels: tuple[tuple[int, ...], ...]
    strides: tuple[tuple[int, ...], ...]

    @property
    def halvings(self) -> int:
        """How many times the network halves the resolution of some axis."""
        return len(self.strides) - 1

    @property
    def multiples(self) -> tuple[int, ...]:
        """What each side of a patch must be a multiple of, in voxels."""
        return tuple(2 ** sum(stride == 2 for stride in axis) for axis in zip(*self.strides, strict=True))


def plan_unet(patch: Sequence[int], spacing_mm: Sequence[float]) -> Plan:
    """The levels that nnU-Net plans for a patch (Isensee et al., Nature Methods 2021, supplementary note 2).

    An axis is halved while it has at least 8 voxels (12 if it is the only one) and its spacing is less than twice the
    smallest of such axes. Kernels are 1 along an axis until its spacing is less than twice the smallest of all axes.

    Args:
        patch: voxels along each axis, in any order.
        spacing_mm: voxel size along the same axes.
    """
    sides, spacings = list(patch), list(spacing_mm)
    axes = range(len(sides))
    kernel = [1 for _ in axes]
    kernels: list[tuple[int, ...]] = []
    strides = [tuple(1 for _ in axes)]
    while large := [axis for axis in axes if sides[axis] >= 2 * _LEAST_SIDE]:
        finest = min(spacings[axis] for axis in large)
        halved = [axis for axis in large if spacings[axis] / finest < 2]
        if len(halved) == 1 and sides[halved[0]] < 3 * _LEAST_SIDE:
            break
        kernel = [3 if spacings[axis] / min(spacings) < 2 else kernel[axis] for axis in axes]
        kernels.append(tuple(kernel))
        strides.append(tuple(2 if axis in halved else 1 for axis in axes))
        for axis in halved:
            spacings[axis] *= 2
            sides[axis] = -(-sides[axis] // 2)
    kernels.append(tuple(3 for _ in axes))
    return Plan(tuple(kernels), tuple(strides))
