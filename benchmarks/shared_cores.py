"""Three sites at once on this machine, each with its share of the threads, against one after the other with all.

Each site takes steps of the quick job. A simulation gives each site cores / sites threads, at least one. Told are the
wall time, which other work on the machine distorts in favour of more processes, and the processor time of all threads.

    .venv/bin/python -m benchmarks.shared_cores [--steps 8] [--json FILE]
"""

import argparse
import multiprocessing
import time
from multiprocessing.sharedctypes import Synchronized
from multiprocessing.synchronize import Barrier
from pathlib import Path

import torch

from benchmarks.steps import QUICK, steps_of
from benchmarks.timing import show
from fl_app.config_file import load_job
from fl_app.simulation.sites import threads_of_each

SITES = 3


def site(threads: int, steps: int, begin: Barrier, end: Barrier, used: Synchronized) -> None:
    """A site's process: one step to warm up, then all steps at a signal; adds the processor time that they took."""
    torch.set_num_threads(threads)
    rehearsal = steps_of(load_job(QUICK))
    begin.wait()
    started = time.process_time()
    for _ in range(steps):
        rehearsal.step()
    with used.get_lock():
        used.value += time.process_time() - started
    end.wait()


def seconds(processes: int, threads: int, steps: int) -> tuple[float, float]:
    """Wall time until all processes have taken their steps, and their processor time together."""
    context = multiprocessing.get_context("spawn")
    begin, end = context.Barrier(processes + 1), context.Barrier(processes + 1)
    used = context.Value("d", 0.0)
    started = [context.Process(target=site, args=(threads, steps, begin, end, used)) for _ in range(processes)]
    for each in started:
        each.start()
    begin.wait()
    at = time.perf_counter()
    end.wait()
    taken = time.perf_counter() - at
    for each in started:
        each.join()
    return taken, used.value


def main(steps: int, repeats: int, report: Path | None) -> None:
    """Both ways in turns."""
    cores = threads_of_each(1)
    wall: dict[str, list[float]] = {"at once": [], "one after the other": []}
    used: dict[str, list[float]] = {"at once": [], "one after the other": []}
    for _ in range(repeats):
        for name, way in (
            ("at once", (SITES, threads_of_each(SITES), steps)),
            ("one after the other", (1, cores, SITES * steps)),
        ):
            taken, together = seconds(*way)
            wall[name].append(taken)
            used[name].append(together)
    print("wall time")
    show(wall, "at once", {"sites": SITES, "cores": cores}, report)
    print("processor time")
    show(used, "at once", {}, report.with_suffix(".processor.json") if report else None)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    main(options.steps, options.repeats, options.json)
