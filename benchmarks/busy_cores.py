"""A training step on all cores, alone and while other work holds them, against libgomp's own way of waiting.

The threads of a step wait for each other at every operator. By libgomp's default a thread looks 300 000 times whether
the others are done before it gives its core away, which is quick until one of them has no core: fedspleen sets
``GOMP_SPINCOUNT`` to 1000 (`fl_app/__init__.py`). Each figure is a process of its own; the other work is an endless
loop for each core and one more, each in a session of its own, as other users' would be. Wall time: waiting counts.

    .venv/bin/python -m benchmarks.busy_cores [REPETITIONS] [--json FILE]
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from benchmarks.steps import QUICK, steps_of
from benchmarks.timing import show
from fl_app.config_file import load_job
from fl_app.simulation.sites import threads_of_each

STEPS = 2
WAYS = {"fedspleen": None, "libgomp's default": "300000"}


def step_seconds() -> float:
    """Seconds of a step of the quick job in this process, with a thread for each core."""
    torch.set_num_threads(threads_of_each(1))
    steps = steps_of(load_job(QUICK))
    started = time.perf_counter()
    for _ in range(STEPS):
        steps.step()
    return (time.perf_counter() - started) / STEPS


def measured(spins: str | None) -> float:
    """The same in a fresh process.

    Args:
        spins: how often a thread looks before it gives its core away; none: as fedspleen has it.
    """
    environment = {
        name: value for name, value in os.environ.items() if name not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
    }
    if spins:
        environment["GOMP_SPINCOUNT"] = spins
    # as the command line does: fl_app comes before torch
    code = "import fl_app; from benchmarks.busy_cores import step_seconds; print(step_seconds())"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    return float(done.stdout.splitlines()[-1])


@contextmanager
def other_work(processes: int) -> Iterator[None]:
    """So many processes that never rest, until the block ends."""
    command = [sys.executable, "-c", "while True: pass"]
    started = [subprocess.Popen(command, start_new_session=True) for _ in range(processes)]
    try:
        yield
    finally:
        for each in started:
            each.kill()
            each.wait()


def main(repetitions: int, report: Path | None) -> None:
    """Both ways in turns, alone and beside other work."""
    cores = threads_of_each(1)
    for label, others in (("alone", 0), ("while other work holds the cores", cores + 1)):
        seconds: dict[str, list[float]] = {name: [] for name in WAYS}
        with other_work(others):
            for _ in range(repetitions):
                for name, spins in WAYS.items():
                    seconds[name].append(measured(spins))
        print(f"{label}, {cores} threads")
        show(seconds, "fedspleen", {}, report.with_suffix(f".{others}.json") if report else None)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("repetitions", type=int, nargs="?", default=3)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    main(options.repetitions, options.json)
