"""Draw networks of a space that fit a memory budget: at random, the smallest, the largest, mutants and crosses."""

from __future__ import annotations

import itertools
from functools import cached_property

import numpy as np

from fl_app.networks.space.architecture import Architecture
from fl_app.networks.space.decoding import Scores, choices_of, decode, least_network
from fl_app.networks.space.memory import MemoryModel
from fl_app.networks.space.paths import COUNT, Choices, Paths
from fl_app.networks.space.supernet import supernet_size, weight_sizes
from fl_app.networks.space.topology import edges_of


class NetworkSampler:
    """Networks of a space in a budget; what is drawn depends on the arguments and the random stream alone.

    Args:
        memory: the space, and bytes that its networks take.
        budget: bytes of training memory; None: any.
        must_contain: a network whose weights each drawn one must hold as well.
        least: bytes that a drawn network should take at least, where some do.

    Raises:
        BudgetError: no network fits; it names the least budget that one fits in.
    """

    def __init__(
        self,
        memory: MemoryModel,
        budget: float | None = None,
        must_contain: Architecture | None = None,
        least: float = 0.0,
    ) -> None:
        self.memory = memory
        self.least = least
        self.must_contain = must_contain
        self._choices = choices_of(memory.space, must_contain)
        # with a bound, small and large networks can be told apart while drawing
        self.budget = memory.total(self._most(None)) if budget is None else budget
        self.largest = self._most(self.budget)

    @cached_property
    def smallest(self) -> Architecture:
        """The network that takes the fewest bytes."""
        return least_network(self.memory, self.must_contain)

    def draw(self, chance: np.random.Generator) -> Architecture:
        """A random network: first a size, uniformly in bytes, then uniformly one of all networks up to that size.

        Drawn from all networks alike, nearly all would be about as large as the budget.
        """
        return self._drawn(self._all, chance, spread=True) or self.smallest

    def sandwich(self, count: int, chance: np.random.Generator) -> list[Architecture]:
        """The largest, the smallest, then random ones (Yu and Huang, ICCV 2019), ``count`` in all."""
        return [self.largest, self.smallest, *(self.draw(chance) for _ in range(count - 2))][:count]

    def mutate(self, parent: Architecture, chance: np.random.Generator, blocks: int = 2) -> Architecture:
        """A network that differs from its parent in at most ``blocks`` neighbouring blocks.

        It is uniformly one of all that fit, so topology and operations both change and nothing has to be repaired.
        """
        first = int(chance.integers(max(1, self.memory.space.blocks - blocks + 1)))
        kept = [[(name,) for name in row] for row in parent.blocks]
        choices: Choices = [
            self._choices[block] if first <= block < first + blocks else kept[block] for block in range(len(kept))
        ]
        return self._drawn(self._count(choices), chance) or parent

    def cross(self, mother: Architecture, father: Architecture, chance: np.random.Generator) -> Architecture:
        """A network each of whose edges is as in one of its parents, uniformly one of all that fit."""
        choices = [
            [tuple(dict.fromkeys(names)) for names in zip(*rows, strict=True)]
            for rows in zip(mother.blocks, father.blocks, strict=True)
        ]
        return self._drawn(self._count(choices), chance) or mother

    @cached_property
    def _all(self) -> Paths:
        return self._count(self._choices)

    def _count(self, choices: Choices) -> Paths:
        space = self.memory.space
        ones: dict[str, float] = dict.fromkeys(space.operations, 1.0)
        values = [[ones] * len(edges_of(space.depths))] * space.blocks
        return Paths(self.memory, choices, values, COUNT, self.budget)

    def _drawn(self, paths: Paths, chance: np.random.Generator, spread: bool = False) -> Architecture | None:
        def pick(weights: list[float]) -> int:
            shares = np.cumsum(np.array(weights) / max(weights))
            return int(np.searchsorted(shares, chance.random() * shares[-1], side="right"))

        ends = sorted(paths.ends(), key=lambda end: (end.steps, end.fed))
        if not ends:
            return None
        if spread:
            ends = [end for end in ends if paths.bytes_of(end) >= self.least] or ends[-1:]
            bound = chance.uniform(ends[0].steps, ends[-1].steps)
            ends = [end for end in ends if end.steps <= bound]
        end = ends[pick([end.value for end in ends])]
        return paths.trace(end, pick)

    def _most(self, budget: float | None) -> Architecture:
        space = self.memory.space
        sizes = np.array([[cell[name] for name in space.operations] for cell in self.memory.cells])
        scores = Scores(
            edges=np.tile(sizes.max(-1), (space.blocks, 1)), operations=np.tile(sizes, (space.blocks, 1, 1))
        )
        return decode(scores, self.memory, budget, self.must_contain)


def sample_paths(
    sampler: NetworkSampler, count: int, largest_share: float, organs: int, chance: np.random.Generator
) -> tuple[Architecture, ...]:
    """Different networks for a site to train in one round, whose weights together are part of the supernet's only.

    The smallest and the largest come first; a network that would make the part too large is left out, so there may
    be fewer than ``count``, but never none.

    Args:
        sampler: draws networks in the site's budget.
        count: how many are wanted.
        largest_share: of the supernet's values that may be trained, and so sent.
        organs: how many.
        chance: a random stream.
    """
    space = sampler.memory.space
    allowed = largest_share * supernet_size(space, organs)
    paths: list[Architecture] = []
    held: dict[str, int] = {}
    random_ones = (sampler.draw(chance) for _ in range(4 * count))
    for network in itertools.chain((sampler.smallest, sampler.largest), random_ones):
        together = {**held, **weight_sizes(space, network, organs)}
        if network not in paths and (not paths or sum(together.values()) <= allowed):
            paths.append(network)
            held = together
        if len(paths) == count:
            break
    return tuple(paths)
