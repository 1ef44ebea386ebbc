"""Three sites at once on this machine, each with its share of the threads, against one after the other with all.

Each site takes steps of the quick job. A simulation gives each site cores / sites threads, at least one.

    .venv/bin/python -m benchmarks.shared_cores [--steps 8] [--json FILE]
"""

import argparse
import multiprocessing
import os
import time
from multiprocessing.synchronize import Barrier
from pathlib import Path

import torch

from benchmarks.timing import show
from fl_app.config_file import load_job
from fl_app.training.cost import RandomSteps
from fl_app.training.trainer import ready_network
from fl_app.training.trial import usual_way

QUICK = Path(__file__).parent.parent / "fl_app" / "jobs" / "quick.yaml"
SITES, CPU = 3, torch.device("cpu")


def site(threads: int, steps: int, begin: Barrier, end: Barrier) -> None:
    """A site's process: one step to warm up, then all steps at a signal."""
    torch.set_num_threads(threads)
    job = load_job(QUICK)
    rehearsal = RandomSteps(
        ready_network(job, CPU),
        job.data.patch_voxels,
        job.training.batch_size,
        CPU,
        usual_way(job, CPU).precision,
        job.training,
    )
    rehearsal.step()
    begin.wait()
    for _ in range(steps):
        rehearsal.step()
    end.wait()


def wall(processes: int, threads: int, steps: int) -> float:
    """Seconds until all processes have taken their steps."""
    context = multiprocessing.get_context("spawn")
    begin, end = context.Barrier(processes + 1), context.Barrier(processes + 1)
    started = [context.Process(target=site, args=(threads, steps, begin, end)) for _ in range(processes)]
    for each in started:
        each.start()
    begin.wait()
    at = time.perf_counter()
    end.wait()
    taken = time.perf_counter() - at
    for each in started:
        each.join()
    return taken


def main(steps: int, repeats: int, report: Path | None) -> None:
    """Both ways in turns."""
    cores = len(os.sched_getaffinity(0))
    times: dict[str, list[float]] = {"at once": [], "one after the other": []}
    for _ in range(repeats):
        times["at once"].append(wall(SITES, max(1, cores // SITES), steps))
        times["one after the other"].append(wall(1, cores, SITES * steps))
    show(times, "at once", {"sites": SITES, "cores": cores}, report)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    main(options.steps, options.repeats, options.json)
