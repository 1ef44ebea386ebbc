"""The best network from scores at 12 blocks and 4 depths: our decoder, with and without a budget, beside MONAI's.

MONAI: `TopologySearch.decode`, Dijkstra's algorithm on a dense matrix; it knows no budget. One thread.

    .venv/bin/python -m benchmarks.decoding
"""

import contextlib
import io
import statistics
import time
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from monai.networks.nets.dints import TopologySearch

from fl_app.config.space import SearchSpace
from fl_app.networks.space.decoding import Scores, decode
from fl_app.networks.space.memory import MemoryModel

SPACE = SearchSpace(blocks=12, depths=4)


def seconds(call: Callable[[], object], repeats: int) -> float:
    """Median processor time of a call."""
    taken = []
    for _ in range(repeats):
        started = time.process_time()
        call()
        taken.append(time.process_time() - started)
    return statistics.median(taken)


def main() -> None:
    """Print processor time of each, and what share of the budget the network takes."""
    torch.set_num_threads(1)
    chance = np.random.default_rng(0)
    edges = 3 * SPACE.depths - 2
    scores = Scores(
        chance.normal(size=(SPACE.blocks, edges)), chance.normal(size=(SPACE.blocks, edges, len(SPACE.operations)))
    )
    memory = MemoryModel(SPACE, organs=1, patch=(64, 64, 64))
    free = memory.total(decode(scores, memory))
    ours = seconds(lambda: decode(scores, memory), 5)
    print(f"fedspleen, any budget     {ours:7.3f} s")
    for share in (0.4, 0.6, 0.8):
        budget = share * free
        taken = seconds(partial(decode, scores, memory, budget), 5)
        used = memory.total(decode(scores, memory, budget)) / budget
        print(f"fedspleen, budget {share:.0%}     {taken:7.3f} s; the network takes {used:.1%} of its budget")
    with contextlib.redirect_stdout(io.StringIO()):
        monai = TopologySearch(channel_mul=0.125, num_blocks=SPACE.blocks, num_depths=SPACE.depths)
    with torch.no_grad():
        monai.log_alpha_a.copy_(torch.from_numpy(scores.edges))
        monai.log_alpha_c.copy_(torch.from_numpy(scores.operations))
    theirs = seconds(monai.decode, 1)
    print(f"MONAI, knows no budget    {theirs:7.3f} s; {theirs / ours:.0f} times as long")


if __name__ == "__main__":
    main()
