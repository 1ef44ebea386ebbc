"""Small search spaces, all of their networks, and random ones, for tests."""

import itertools
import random

from fl_app.config.space import SearchSpace
from fl_app.networks.space.architecture import Architecture, check
from fl_app.networks.space.topology import edges_of, fixed_edges


def space(**settings):
    return SearchSpace.model_validate({"blocks": 3, "depths": 3, "channels": 4} | settings)


def every_architecture(space):
    """All networks of a small space, by trying everything."""
    width = len(edges_of(space.depths))
    rows = itertools.product((None, *space.operations), repeat=width)
    blocks = [row for row in rows if set(row) - {None, "skip"}]
    found = (Architecture(space.name, each) for each in itertools.product(blocks, repeat=space.blocks))
    return [each for each in found if check(each, space) is None]


def random_architecture(space, seed):
    """A random network, built block by block and thrown away until it is one."""
    chance = random.Random(seed)
    edges, fixed = edges_of(space.depths), fixed_edges(space)
    while True:
        blocks, nodes = [], None
        for number in range(space.blocks):
            row = [
                chance.choice(space.operations)
                if (
                    fixed[number][place] if fixed else (nodes is None or edge.source in nodes) and chance.random() < 0.5
                )
                else None
                for place, edge in enumerate(edges)
            ]
            nodes = {edge.target for edge, operation in zip(edges, row, strict=True) if operation}
            blocks.append(tuple(row))
        made = Architecture(space.name, tuple(blocks))
        if check(made, space) is None:
            return made
