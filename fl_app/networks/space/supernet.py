"""The network that holds every architecture of a space, and the one that holds a single architecture.

Both give a weight the same name, so that what one has learned can be put into the other, or averaged with it:

    stem_down.D.*                          the image to resolution D
    cells.B.E.preprocess.*                 block B, edge E (of `edges_of`)
    cells.B.E.operations.NAME.*            and each operation there
    stem_up.D.*                            resolution D to D - 1, behind the last block
    head.*                                 to the logits

Weights of an operation bear its name, not its place among those left, so different operations never share a name.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import lru_cache
from types import MappingProxyType
from typing import cast

import torch
from torch import nn

from fl_app.config.space import SearchSpace
from fl_app.errors import ConfigError
from fl_app.networks.space.architecture import Architecture, check
from fl_app.networks.space.cells import Cell, Head, StemDown, StemUp
from fl_app.networks.space.topology import channels_at, edges_of, fixed_edges


class _Grid(nn.Module):
    """The stems, the head and those cells that exist; how features run through them.

    Args:
        space: the search space.
        organs: how many; channel 0 of the logits is background.
        operations: by block and place of an edge, what its cell can compute.
        inputs: the resolutions that the first block reads.
        ups: the resolutions behind the last block that have to come up by one.
    """

    def __init__(
        self,
        space: SearchSpace,
        organs: int,
        operations: Mapping[tuple[int, int], tuple[str, ...]],
        inputs: Iterable[int],
        ups: Iterable[int],
    ) -> None:
        super().__init__()
        self.space = space
        self.edges = edges_of(space.depths)
        stride = 2 if space.downsampling_stem else 1
        self.stem_down = nn.ModuleDict({str(d): StemDown(d, channels_at(space, d), stride) for d in sorted(inputs)})
        self.cells = nn.ModuleDict({str(block): nn.ModuleDict() for block in range(space.blocks)})
        for (block, place), names in operations.items():
            edge = self.edges[place]
            cell = Cell(edge, channels_at(space, edge.source), channels_at(space, edge.target), names)
            cast(nn.ModuleDict, self.cells[str(block)])[str(place)] = cell
        self.stem_up = nn.ModuleDict(
            {str(d): StemUp(channels_at(space, d), channels_at(space, d - 1)) for d in sorted(ups)}
        )
        self.head = Head(space.channels, 1 + organs, space.downsampling_stem)

    def cell(self, block: int, place: int) -> Cell:
        """The cell on an edge."""
        return cast(Cell, cast(nn.ModuleDict, self.cells[str(block)])[str(place)])

    def run(self, image: torch.Tensor, architecture: Architecture) -> torch.Tensor:
        """Logits of one architecture; nothing else is computed or kept for the backward pass."""
        nodes = {depth: self.stem_down[str(depth)](image) for depth in sorted(architecture.sources(0))}
        block, fed = 0, dict[int, torch.Tensor]()
        for where, place, edge, operation in architecture.active:
            if where != block:
                block, nodes, fed = where, fed, {}
            result = self.cell(block, place)(nodes[edge.source], operation)
            fed[edge.target] = fed[edge.target] + result if edge.target in fed else result
        return self.finish(fed)

    def finish(self, nodes: Mapping[int, torch.Tensor]) -> torch.Tensor:
        """Bring the last block's features up to the finest resolution, adding what is there, and to logits."""
        features = nodes[max(nodes)]
        for depth in range(max(nodes), 0, -1):
            features = self.stem_up[str(depth)](features)
            features = features + nodes[depth - 1] if depth - 1 in nodes else features
        logits: torch.Tensor = self.head(features)
        return logits


class Supernet(_Grid):
    """Every cell with every operation of a space; one architecture, or a weighted mixture of all, is run at a time.

    Args:
        space: the search space.
        organs: how many; channel 0 of the logits is background.
        seed: of the initial weights; the caller's random stream is left as it was.
    """

    def __init__(self, space: SearchSpace, organs: int, seed: int = 0) -> None:
        fixed = fixed_edges(space)
        places = range(len(edges_of(space.depths)))
        cells = [(b, place) for b in range(space.blocks) for place in places if not fixed or fixed[b][place]]
        targets = {edges_of(space.depths)[place].target for block, place in cells if block == space.blocks - 1}
        sources = {edges_of(space.depths)[place].source for block, place in cells if block == 0}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            super().__init__(space, organs, dict.fromkeys(cells, space.operations), sources, range(1, max(targets) + 1))

    def forward(self, image: torch.Tensor, architecture: Architecture) -> torch.Tensor:
        """Logits (batch, 1 + organs, x, y, z) of one architecture, for an image (batch, 1, x, y, z)."""
        return self.run(image, architecture)

    def forward_mixed(self, image: torch.Tensor, edges: torch.Tensor, operations: torch.Tensor) -> torch.Tensor:
        """Logits of all architectures at once: DiNTS's continuous supernet (He et al., CVPR 2021).

        Args:
            image: (batch, 1, x, y, z).
            edges: (blocks, 3 * depths - 2), what each edge's result is multiplied with.
            operations: (blocks, 3 * depths - 2, operations), the share of each operation on an edge.
        """
        nodes = {int(depth): stem(image) for depth, stem in self.stem_down.items()}
        for block, row in self.cells.items():
            fed: dict[int, torch.Tensor] = {}
            for place in map(int, cast(nn.ModuleDict, row)):
                edge = self.edges[place]
                cell = self.cell(int(block), place)
                result = cell.forward_mixed(nodes[edge.source], operations[int(block), place])
                result = result * edges[int(block), place]
                fed[edge.target] = fed[edge.target] + result if edge.target in fed else result
            nodes = fed
        return self.finish(nodes)


class DiscreteNetwork(_Grid):
    """One architecture as a network of its own; its weights bear the supernet's names.

    Args:
        space: the search space.
        architecture: a network of it.
        organs: how many; channel 0 of the logits is background.
        seed: of the initial weights; the caller's random stream is left as it was.

    Raises:
        ConfigError: the architecture is no network of the space.
    """

    def __init__(self, space: SearchSpace, architecture: Architecture, organs: int, seed: int = 0) -> None:
        if problem := check(architecture, space):
            raise ConfigError(f"architecture: {problem} - use one that was searched in this job's search.space")
        deepest = max(architecture.targets(space.blocks - 1))
        operations = {(block, place): (operation,) for block, place, _, operation in architecture.active}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            super().__init__(space, organs, operations, architecture.sources(0), range(1, deepest + 1))
        self.architecture = architecture

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Logits (batch, 1 + organs, x, y, z) for an image (batch, 1, x, y, z)."""
        return self.run(image, self.architecture)


@lru_cache(maxsize=1024)
def weight_sizes(space: SearchSpace, architecture: Architecture, organs: int) -> Mapping[str, int]:
    """How many values each of an architecture's weights has, by name; nothing is computed and no memory is taken."""
    with torch.device("meta"):
        state = DiscreteNetwork(space, architecture, organs).state_dict()
    return MappingProxyType({name: value.numel() for name, value in sorted(state.items())})


def weight_names(space: SearchSpace, architecture: Architecture) -> tuple[str, ...]:
    """The names of an architecture's weights, sorted."""
    return tuple(weight_sizes(space, architecture, 1))


@lru_cache(maxsize=16)
def supernet_size(space: SearchSpace, organs: int) -> int:
    """How many values a supernet has."""
    with torch.device("meta"):
        return sum(value.numel() for value in Supernet(space, organs).state_dict().values())
