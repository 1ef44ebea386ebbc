"""The grid that architectures live on: its edges, and which of them a U-Net has."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

from fl_app.config.space import SearchSpace


class Edge(NamedTuple):
    """An edge of a block, from a resolution (0 is the finest) to one that differs by one at most."""

    source: int
    target: int


@lru_cache
def edges_of(depths: int) -> tuple[Edge, ...]:
    """The 3 * depths - 2 edges of a block, in DiNTS's order: by target, then by source.

    For 3 depths: 0-0, 1-0, 0-1, 1-1, 2-1, 1-2, 2-2.
    """
    nodes = range(depths)
    return tuple(Edge(source, target) for target in nodes for source in nodes if abs(source - target) <= 1)


def fixed_edges(space: SearchSpace) -> tuple[tuple[bool, ...], ...] | None:
    """Which edges each block must have and no others; None where edges are free.

    A U-Net goes down one resolution in each of the first ``depths - 1`` blocks and up again in the last ones;
    every resolution reached is kept alive by its straight edge until the way up has merged into it.
    """
    if space.topology == "free":
        return None
    down = space.depths - 1
    blocks = []
    for block in range(space.blocks):
        deepest_before = min(block, down, space.blocks - block)
        deepest_after = min(block + 1, down, space.blocks - block - 1)
        blocks.append(
            tuple(
                edge.source == edge.target <= min(deepest_before, deepest_after)
                or edge == (deepest_before, deepest_after)
                for edge in edges_of(space.depths)
            )
        )
    return tuple(blocks)


def channels_at(space: SearchSpace, depth: int) -> int:
    """Feature maps at a resolution."""
    return int(space.channels * 2**depth)
