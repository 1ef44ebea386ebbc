"""From scores of edges and operations to the best network in a memory budget."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fl_app.config.space import SearchSpace
from fl_app.errors import BudgetError, ConfigError
from fl_app.networks.space.architecture import Architecture
from fl_app.networks.space.memory import MemoryModel
from fl_app.networks.space.paths import BEST, Choices, Paths, Values
from fl_app.networks.space.topology import edges_of, fixed_edges

_TRIES = 200


@dataclass(frozen=True)
class Scores:
    """What a search has learned.

    Attributes:
        edges: (blocks, 3 * depths - 2) logits: an edge is active with probability sigmoid(logit).
        operations: (blocks, 3 * depths - 2, operations) logits of the softmax over a cell's operations.
    """

    edges: npt.NDArray[np.float64]
    operations: npt.NDArray[np.float64]

    def values(self, space: SearchSpace) -> Values:
        """What each operation of each edge adds to a network's value; an inactive edge adds nothing.

        An active edge adds log p - log(1 - p), its logit, so a network's value is the log-probability of its edges
        (DiNTS, He et al., CVPR 2021) up to a constant; an operation other than the likeliest costs the
        difference of their log-probabilities.
        """
        regret = self.operations - self.operations.max(-1, keepdims=True)
        worth = (self.edges[..., None] + regret).tolist()
        return [[dict(zip(space.operations, edge, strict=True)) for edge in block] for block in worth]

    def value(self, architecture: Architecture, space: SearchSpace) -> float:
        """A network's value: what `decode` makes as large as it can."""
        values = self.values(space)
        return sum(values[block][place][operation] for block, place, _, operation in architecture.active)


def decode(
    scores: Scores,
    memory: MemoryModel,
    budget: float | None = None,
    must_contain: Architecture | None = None,
    at_least: float = 0.0,
) -> Architecture:
    """The network of the highest value in a memory budget.

    Bytes are counted in a thousandth of what the budget leaves after the head, rounded up, so the network fits; one
    that fits by less than the rounding may be missed.

    Args:
        scores: what the search has learned.
        memory: the space, and bytes that its networks take.
        budget: bytes of training memory; None: any.
        must_contain: a network whose weights the result must hold as well (see `Architecture.is_subset`).
        at_least: bytes that the network must take, so that a budget is made use of.

    Raises:
        BudgetError: no network fits; it names the least budget that one fits in.
        ConfigError: networks fit, but the best ones all take less than ``at_least``.
    """
    space = memory.space
    choices = choices_of(space, must_contain)
    paths = Paths(memory, choices, scores.values(space), BEST, budget)
    for end in sorted(paths.ends(), key=lambda end: (-end.value, end.steps, end.fed))[: _TRIES if at_least else 1]:
        network = paths.trace(end, _first_largest)
        if memory.total(network) >= at_least:
            return network
    least = least_network(memory, must_contain)
    needed = memory.total(least)
    if budget is not None and needed > budget:
        raise BudgetError(
            f"no network of search.space fits a memory budget of {mebibytes(budget)} - the least that one fits in is "
            f"{mebibytes(needed)}: raise the site's budget, or lower data.patch_voxels, training.batch_size or "
            "search.space.channels",
            round(needed + 0.5),
        )
    if needed >= at_least:
        return least
    raise ConfigError(
        f"no network of search.space takes between {mebibytes(at_least)} and {mebibytes(budget or 0)} - "
        "raise search.space.blocks or search.space.channels, or allow smaller networks"
    )


def least_network(memory: MemoryModel, must_contain: Architecture | None = None) -> Architecture:
    """The network that takes the fewest bytes; to the byte, without rounding."""
    values = [[{name: -size for name, size in cell.items()} for cell in memory.cells]] * memory.space.blocks
    choices = choices_of(memory.space, must_contain)
    reading = [-size for size in memory.nodes]
    paths = Paths(memory, choices, values, BEST, None, start=lambda nodes: -memory.inputs(nodes), reading=reading)
    traced = [paths.trace(end, _first_largest) for end in paths.ends()]
    return min(traced, key=memory.total)


def choices_of(space: SearchSpace, must_contain: Architecture | None = None) -> Choices:
    """What each edge of each block may have, in a space, or in a network that holds another one's weights."""
    fixed = fixed_edges(space)
    every: tuple[str, ...] = space.operations
    choices: list[list[tuple[str | None, ...]]] = []
    for block in range(space.blocks):
        row: list[tuple[str | None, ...]] = []
        for place in range(len(edges_of(space.depths))):
            held = must_contain.blocks[block][place] if must_contain else None
            if held is not None:
                row.append(every if held == "skip" else (held,))
            elif fixed:
                row.append(every if fixed[block][place] else (None,))
            else:
                row.append((None, *every))
        choices.append(row)
    return choices


def mebibytes(size: float) -> str:
    """A size for people, rounded up: a budget of as much is enough."""
    return f"{-(-size // (2**20 / 10)) / 10:.1f} MiB"


def _first_largest(values: Sequence[float]) -> int:
    return max(range(len(values)), key=lambda index: values[index])
