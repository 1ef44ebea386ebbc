"""A whole federation in a process of its own, killed for real at moments that chance decides."""

import multiprocessing
import os
import time

from fl_app.config import Job
from fl_app.rehearsal import Rehearsal, rehearse
from tests.light_sites import LightSite

# forked from a process that has imported everything and nothing else: a start takes milliseconds
_PROCESSES = multiprocessing.get_context("forkserver")
_PROCESSES.set_forkserver_preload([__name__])


def run_light(text, names, folder):
    """A job with sites that take no time, to its end; goes on where an earlier process was ended."""
    job = Job.model_validate_json(text)
    rehearse(job, dict.fromkeys(names), folder, Rehearsal({name: LightSite(job, name) for name in names}))


def run_and_kill(run, arguments, moments):
    """Start a function until it comes to its end by itself.

    Args:
        run: the function, which other processes can import.
        arguments: its arguments.
        moments: for each start, after how many seconds it is killed.

    Returns:
        How many starts were killed, and the seconds that the last one took.
    """
    killed = 0
    while True:
        process = _PROCESSES.Process(target=run, args=arguments)
        process.start()
        started = time.monotonic()
        process.join(next(moments, None))
        if process.exitcode is None:
            process.kill()
            process.join()
            killed += process.exitcode != 0
        if process.exitcode == 0:
            return killed, time.monotonic() - started
        assert process.exitcode == -9, f"it failed: {os.fspath(arguments[-1])}"
