"""All networks of a space at once, by dynamic programming over the edges of the grid.

What the rest of a network can be depends on the part already chosen only through the resolutions that are fed and
the bytes that are spent. So networks are built from left to right, resolution by resolution, and of all parts that
agree in both only their best value (or their number) is kept: Viterbi's algorithm (IEEE Trans. Inf. Theory, 1967)
over sets of resolutions times steps of memory. Bytes are rounded up to whole steps at each resolution of each block,
so no network found exceeds the budget.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from fl_app.config.space import SearchSpace
from fl_app.networks.space.architecture import Architecture
from fl_app.networks.space.memory import MemoryModel
from fl_app.networks.space.topology import edges_of

Row = npt.NDArray[np.float64]
# for each block and edge: the operations it may have; None among them: it may be inactive
Choices = Sequence[Sequence[tuple[str | None, ...]]]
# for each block and edge: what each operation is worth
Values = Sequence[Sequence[Mapping[str, float]]]


@dataclass(frozen=True)
class Algebra:
    """How values along a network join, and values of different networks.

    Attributes:
        nothing: the value of no network.
        empty: the value of a network without edges.
        along: joins the values of a network's parts.
        across: joins the values of different networks.
    """

    nothing: float
    empty: float
    along: np.ufunc
    across: np.ufunc


BEST = Algebra(-math.inf, 0.0, along=np.add, across=np.maximum)
COUNT = Algebra(0.0, 1.0, along=np.multiply, across=np.add)


class State(NamedTuple):
    """What a block's choices so far leave: resolutions still to be read, those fed, whether it has a convolution."""

    rest: int
    fed: int
    convolved: bool


# a value, and the operations on the edges (by place) that have one
Variant = tuple[float, tuple[tuple[int, str], ...]]


class Option(NamedTuple):
    """Choices for all edges that leave one resolution in one block, alike in what matters to the rest."""

    fed: int
    convolved: bool
    steps: int
    value: float
    variants: tuple[Variant, ...]


class End(NamedTuple):
    """A way to end: its value, the steps it takes in all, what the last block feeds, the steps until there."""

    value: float
    steps: int
    fed: int
    column: int


class Paths:
    """The networks of a space that fit a budget, or the best of them, from left to right.

    Args:
        memory: the space, and bytes of its edges.
        choices: what each edge may have.
        values: what each operation of each edge is worth; an inactive edge is worth nothing.
        algebra: `BEST` to find the best network, `COUNT` to count and draw networks.
        budget: bytes; None: any.
        steps: of memory; more are finer, and slower.
        start: what it is worth to begin with these resolutions; None: nothing.
        reading: what it is worth that a block reads each resolution; None: nothing.
    """

    def __init__(
        self,
        memory: MemoryModel,
        choices: Choices,
        values: Values,
        algebra: Algebra,
        budget: float | None,
        steps: int = 1000,
        start: Callable[[frozenset[int]], float] | None = None,
        reading: Sequence[float] | None = None,
    ) -> None:
        self.space: SearchSpace = memory.space
        self.memory = memory
        self.algebra = algebra
        left = math.inf if budget is None else budget - memory.fixed
        self._width = left / steps
        self._columns = 1 if budget is None else steps + 1 if left > 0 else 0
        self._edges = edges_of(self.space.depths)
        self._reading = reading or [algebra.empty] * self.space.depths
        nodes = range(self.space.depths)
        self._options = [[self._options_of(choices[b], values[b], node) for node in nodes] for b in range(len(choices))]
        # whether none of the edges that leave a resolution has to be active
        self._idle = [
            [all(None in choices[b][place] for place in self._places(n)) for n in nodes] for b in range(len(choices))
        ]
        self._levels = self._forward(start)

    def ends(self) -> Iterator[End]:
        """All ways to end."""
        for state, row in self._levels[-1][-1].items():
            if not state.rest and state.convolved and state.fed & 1:
                extra = self._steps(self.memory.outputs(_members(state.fed)))
                for column in range(max(0, self._columns - extra)):
                    if row[column] != self.algebra.nothing:
                        yield End(float(row[column]), column + extra, state.fed, column)

    def bytes_of(self, end: End) -> float:
        """Bytes that a network with this end takes at most, rounding included; only with a budget."""
        return self.memory.fixed + end.steps * self._width

    def trace(self, end: End, pick: Callable[[list[float]], int]) -> Architecture:
        """A network with this end, from right to left.

        Args:
            end: one of `ends`.
            pick: of values of different ways to the same place, chooses one.
        """
        fed, column = end.fed, end.column
        blocks: list[tuple[str | None, ...]] = []
        for block in reversed(range(self.space.blocks)):
            state = State(0, fed, True)
            row: list[str | None] = [None] * len(self._edges)
            for node in reversed(range(self.space.depths)):
                ways = list(self._ways(block, node, state, column))
                _, state, option = ways[pick([value for value, _, _ in ways])]
                if option:
                    column -= option.steps
                    chosen = pick([value for value, _ in option.variants]) if len(option.variants) > 1 else 0
                    for place, operation in option.variants[chosen][1]:
                        row[place] = operation
            blocks.append(tuple(row))
            fed = state.rest
        return Architecture(self.space.name, tuple(reversed(blocks)))

    def _forward(self, begin: Callable[[frozenset[int]], float] | None) -> list[list[dict[State, Row]]]:
        """For each block, the rows before its first resolution and after each of them."""
        start: dict[State, Row] = {}
        for mask in range(1, 2**self.space.depths):
            row = np.full(self._columns, self.algebra.nothing)
            column = self._steps(self.memory.inputs(_members(mask)))
            if column < self._columns:
                row[column] = begin(_members(mask)) if begin else self.algebra.empty
                start[State(mask, 0, False)] = row
        blocks = []
        for block in range(self.space.blocks):
            levels = [start]
            for node in range(self.space.depths):
                levels.append(self._after(block, node, levels[-1]))
            blocks.append(levels)
            start = {State(s.fed, 0, False): row for s, row in levels[-1].items() if not s.rest and s.convolved}
        return blocks

    def _after(self, block: int, node: int, before: Mapping[State, Row]) -> dict[State, Row]:
        after: dict[State, Row] = {}
        for state, row in before.items():
            if not state.rest >> node & 1:
                if self._idle[block][node]:
                    self._join(after, state, row, 0, self.algebra.empty)
                continue
            for option in self._options[block][node]:
                self._join(after, _next(state, node, option), row, option.steps, option.value)
        return after

    def _join(self, rows: dict[State, Row], state: State, row: Row, steps: int, value: float) -> None:
        if steps >= self._columns:
            return
        held = rows.get(state)
        if held is None:
            held = rows[state] = np.full(self._columns, self.algebra.nothing)
        part = held[steps:]
        self.algebra.across(part, self.algebra.along(row[: len(part)], value), out=part)

    def _ways(self, block: int, node: int, state: State, column: int) -> Iterator[tuple[float, State, Option | None]]:
        """From where a state can have come: value, state before, option taken (None: the resolution is not read)."""
        for before, row in self._levels[block][node].items():
            if not before.rest >> node & 1:
                if before == state and self._idle[block][node] and row[column] != self.algebra.nothing:
                    yield float(row[column]), before, None
                continue
            for option in self._options[block][node]:
                if _next(before, node, option) == state and option.steps <= column:
                    value = float(self.algebra.along(row[column - option.steps], option.value))
                    if value != self.algebra.nothing:
                        yield value, before, option

    def _options_of(
        self, choices: Sequence[tuple[str | None, ...]], values: Sequence[Mapping[str, float]], node: int
    ) -> list[Option]:
        places = self._places(node)
        groups: dict[tuple[int, bool, int], list[Variant]] = {}
        for chosen in itertools.product(*(choices[place] for place in places)):
            active = [(place, name) for place, name in zip(places, chosen, strict=True) if name is not None]
            if not active:
                continue
            fed = sum(1 << self._edges[place].target for place, _ in active)
            size = self.memory.nodes[node] + sum(self.memory.cells[place][name] for place, name in active)
            steps, value = self._steps(size), self._reading[node]
            for place, name in active:
                value = float(self.algebra.along(value, values[place][name]))
            convolved = any(name != "skip" for _, name in active)
            groups.setdefault((fed, convolved, steps), []).append((value, tuple(active)))
        options: list[Option] = []
        for (fed, convolved, steps), variants in sorted(groups.items(), key=lambda item: item[0]):
            if self.algebra is BEST:
                variants = [max(variants, key=lambda variant: variant[0])]
                better = (o for o in options if (o.fed, o.convolved) == (fed, convolved) and o.value >= variants[0][0])
                if next(better, None):
                    continue
            value = variants[0][0] if self.algebra is BEST else sum(value for value, _ in variants)
            options.append(Option(fed, convolved, steps, value, tuple(variants)))
        return options

    def _places(self, node: int) -> list[int]:
        return [place for place, edge in enumerate(self._edges) if edge.source == node]

    def _steps(self, size: float) -> int:
        if size == 0 or self._width == math.inf:
            return 0
        return math.ceil(size / self._width) if self._columns else 1


def _next(state: State, node: int, option: Option) -> State:
    return State(state.rest & ~(1 << node), state.fed | option.fed, state.convolved or option.convolved)


def _members(mask: int) -> frozenset[int]:
    return frozenset(node for node in range(mask.bit_length()) if mask >> node & 1)
