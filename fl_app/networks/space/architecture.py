"""An architecture as plain data: which edges of the grid are active, and what each of them computes."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from fl_app.config.space import SearchSpace
from fl_app.errors import ConfigError
from fl_app.networks.space.topology import Edge, edges_of, fixed_edges

VERSION = 1
_LARGEST_TEXT = 100_000


@dataclass(frozen=True)
class Architecture:
    """One network of a search space.

    Attributes:
        space: `SearchSpace.name` of the space that it belongs to.
        blocks: for each block and each of its edges (in the order of `edges_of`) the operation, or None where the
            edge is not active.
    """

    space: str
    blocks: tuple[tuple[str | None, ...], ...]

    @property
    def depths(self) -> int:
        """How many resolutions the grid has."""
        return (len(self.blocks[0]) + 2) // 3

    @cached_property
    def active(self) -> tuple[tuple[int, int, Edge, str], ...]:
        """Each active edge: its block, its place in the block, the edge and the operation on it."""
        edges = edges_of(self.depths)
        return tuple(
            (block, place, edges[place], operation)
            for block, operations in enumerate(self.blocks)
            for place, operation in enumerate(operations)
            if operation is not None
        )

    def sources(self, block: int) -> frozenset[int]:
        """The resolutions that a block reads."""
        return frozenset(edge.source for where, _, edge, _ in self.active if where == block)

    def targets(self, block: int) -> frozenset[int]:
        """The resolutions that a block feeds."""
        return frozenset(edge.target for where, _, edge, _ in self.active if where == block)

    def is_subset(self, other: Architecture) -> bool:
        """Whether ``other`` holds every weight of this one.

        That is: each active edge is active in ``other`` too, with the same operation or, where it only skips here,
        with any.
        """
        return self.space == other.space and all(
            theirs is not None and mine in ("skip", theirs)
            for mine_block, their_block in zip(self.blocks, other.blocks, strict=True)
            for mine, theirs in zip(mine_block, their_block, strict=True)
            if mine is not None
        )

    def to_json(self) -> str:
        """The architecture as one line of JSON."""
        return json.dumps({"version": VERSION, "space": self.space, "blocks": self.blocks}, separators=(",", ":"))


def check(architecture: Architecture, space: SearchSpace) -> str | None:
    """Why an architecture is no network of this space, in a few words; None if it is one.

    A network has in every block at least one convolution; what a block feeds is just what the next one reads, so
    that nothing is computed in vain and nothing is read that is not there; and it ends at the finest resolution.
    """
    width = len(edges_of(space.depths))
    if architecture.space != space.name:
        return f"it belongs to the search space {architecture.space[:60]!r}, not to {space.name!r}"
    if len(architecture.blocks) != space.blocks or {len(block) for block in architecture.blocks} != {width}:
        return f"it does not have {space.blocks} blocks of {width} edges"
    for number, block in enumerate(architecture.blocks):
        operations = set(block) - {None}
        if unknown := operations - set(space.operations):
            return f"block {number} has the operation {min(map(str, unknown))[:40]!r}, which the space has not"
        if not operations - {"skip"}:
            return f"block {number} has no convolution"
        if number and architecture.sources(number) != architecture.targets(number - 1):
            return f"block {number} does not read just what block {number - 1} feeds"
    if 0 not in architecture.targets(space.blocks - 1):
        return "it does not end at the finest resolution"
    fixed = fixed_edges(space)
    if fixed and fixed != tuple(tuple(each is not None for each in block) for block in architecture.blocks):
        return f"its edges are not those of the topology {space.topology}"
    return None


def read_architecture(text: str, space: SearchSpace) -> Architecture:
    """An architecture from JSON.

    Args:
        text: as `Architecture.to_json` writes it; it may come from anywhere.
        space: the space that it must be a network of.

    Raises:
        ConfigError: it is no such JSON, of another version, or no network of the space.
    """
    architecture = _parsed(text)
    if problem := check(architecture, space):
        raise ConfigError(f"architecture: {problem} - use one that was searched in this job's search.space")
    return architecture


def _parsed(text: str) -> Architecture:
    hint = f"use one that this version of fedspleen wrote (version {VERSION})"
    if len(text) > _LARGEST_TEXT:
        raise ConfigError(f"architecture: more than {_LARGEST_TEXT} characters - {hint}")
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        raise ConfigError(f"architecture: this is no JSON - {hint}") from None
    if not isinstance(content, dict) or content.get("version") != VERSION:
        raise ConfigError(f"architecture: its version is not {VERSION} - {hint}")
    if set(content) != {"version", "space", "blocks"} or not isinstance(content["space"], str):
        raise ConfigError(f"architecture: it needs the keys version, space and blocks, and no others - {hint}")
    blocks = content["blocks"]
    if not _is_table_of_names(blocks):
        raise ConfigError(f"architecture: blocks is not a list of blocks, each a list of operations or null - {hint}")
    return Architecture(content["space"], tuple(tuple(block) for block in blocks))


def _is_table_of_names(blocks: Any) -> bool:
    return isinstance(blocks, list) and all(
        isinstance(block, list) and block and all(name is None or isinstance(name, str) for name in block)
        for block in blocks
    )
