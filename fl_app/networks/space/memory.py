"""How many bytes training a network of a search space takes: a sum over its edges."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from math import prod

from fl_app.config.space import SearchSpace
from fl_app.networks.space.architecture import Architecture
from fl_app.networks.space.topology import Edge, channels_at, edges_of

_TAPS = {"conv_3x3x3": 27, "conv_3x3x1": 9, "conv_3x1x3": 9, "conv_1x3x3": 9}
_PSEUDO_TAPS = 9 + 3


@dataclass(frozen=True)
class MemoryModel:
    """Bytes that training takes at its peak: ``scale`` * (kept for the backward pass + weights + head) + ``offset``.

    The peak is where the backward pass begins: all is kept, and there are the gradients of the head. Kept are the
    inputs of convolutions and of normalisation layers; a ReLU's result is the input of the convolution behind it and
    counts once. Where activations are computed again, what a block reads is kept and nothing else. Each part depends
    on one edge, or on one resolution that a block reads, which is what makes the search for the best network in a
    budget exact.

    Attributes:
        space: the search space.
        organs: how many; there is one logit more.
        patch: voxels, x y z; multiples of ``space.patch_multiple``.
        batch: patches in a step.
        value_bytes: of a kept value; 2 in mixed precision, 4 in fp32.
        weight_copies: values in fp32 held for each weight: itself, its gradient and the optimiser's (SGD with
            momentum, Novograd 1; Adam 2); if weights are updated one by one without a gradient, and with momentum in
            16 bits. And what it is pulled to, if it is.
        recompute: whether activations are computed again in the backward pass (`fl_app.training.recompute`).
        scale: fitted at a site; 1 before.
        offset: bytes, fitted at a site; 0 before.
    """

    space: SearchSpace
    organs: int
    patch: tuple[int, int, int]
    batch: int = 1
    value_bytes: int = 4
    weight_copies: float = 3
    recompute: bool = False
    scale: float = 1.0
    offset: float = 0.0

    def total(self, architecture: Architecture) -> float:
        """Bytes that training one network takes."""
        cells = self.cells
        last = self.space.blocks - 1
        return (
            self.fixed
            + self.inputs(architecture.sources(0))
            + sum(self.nodes[node] for block in range(self.space.blocks) for node in architecture.sources(block))
            + sum(cells[place][operation] for _, place, _, operation in architecture.active)
            + self.outputs(architecture.targets(last))
        )

    @cached_property
    def cells(self) -> tuple[Mapping[str, float], ...]:
        """Bytes of each edge of a block, by its operation; the same in every block."""
        return tuple(
            {operation: self._cell(edge, operation) for operation in self.space.operations}
            for edge in edges_of(self.space.depths)
        )

    @cached_property
    def nodes(self) -> tuple[float, ...]:
        """Bytes of each resolution that a block reads; the same in every block."""
        return tuple(
            self._bytes(channels_at(self.space, node) * self._voxels(node) if self.recompute else 0, 0)
            for node in range(self.space.depths)
        )

    @cached_property
    def fixed(self) -> float:
        """Bytes that every network takes: the head, the loss and the offset."""
        logits, fine = 1 + self.organs, channels_at(self.space, 0)
        taps = 64 if self.space.downsampling_stem else 27
        # for each voxel the image, the logits, their gradient and the label (see `fl_app.training.dice_ce`)
        loss = (self.value_bytes * (1 + 2 * logits) + 1) * self._patch_voxels
        # the head's input and its gradient
        return self._bytes(2 * fine * self._voxels(0), (taps * fine + 1) * logits) + self.scale * loss + self.offset

    def inputs(self, nodes: frozenset[int]) -> float:
        """Bytes of the stems from the image to the resolutions that the first block reads."""
        stride = 8 if self.space.downsampling_stem else 1
        # the finest stem's input is the patch itself, which is there anyway
        shrunk = {node: stride if node else 0 for node in nodes}
        kept = sum((channels_at(self.space, node) + shrunk[node]) * self._voxels(node) for node in nodes)
        return self._bytes(0 if self.recompute else kept, sum(29 * channels_at(self.space, node) for node in nodes))

    def outputs(self, nodes: frozenset[int]) -> float:
        """Bytes of the stems that bring up the resolutions that the last block feeds."""
        kept = weights = 0
        for node in range(1, max(nodes) + 1):
            coarse, fine = channels_at(self.space, node), channels_at(self.space, node - 1)
            kept += (coarse if self.recompute else coarse + fine) * self._voxels(node)
            weights += 27 * coarse * fine + 2 * fine
        return self._bytes(kept, weights)

    def _cell(self, edge: Edge, operation: str) -> float:
        source, target = channels_at(self.space, edge.source), channels_at(self.space, edge.target)
        kept = weights = 0
        if edge.source != edge.target:
            # kept: the ReLU's result at the source, the normalisation's input at the target
            kept += source * self._voxels(edge.source) + target * self._voxels(edge.target)
            weights += source * target + 2 * target
        if operation in _TAPS:
            kept += 2 * target * self._voxels(edge.target)
            weights += _TAPS[operation] * target**2 + 2 * target
        elif operation != "skip":
            kept += 3 * target * self._voxels(edge.target)
            weights += _PSEUDO_TAPS * target**2 + 2 * target
        return self._bytes(0 if self.recompute else kept, weights)

    def _bytes(self, kept: int, weights: int) -> float:
        # mixed precision keeps a short copy of the weights as well, unless they are computed with twice
        copies = 4 * self.weight_copies + (self.value_bytes if self.value_bytes < 4 and not self.recompute else 0)
        return self.scale * (kept * self.value_bytes + weights * copies)

    @property
    def _patch_voxels(self) -> int:
        return self.batch * prod(self.patch)

    def _voxels(self, depth: int) -> int:
        return int(self._patch_voxels // 8 ** (depth + self.space.downsampling_stem))
