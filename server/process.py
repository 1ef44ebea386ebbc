"""FLARE's server as this process; SIGTERM ends it as its own administrators' command does."""

from __future__ import annotations

import signal
import threading
import time
from argparse import Namespace
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from nvflare.apis.job_def import RunStatus
from nvflare.fuel.f3.mpm import MainProcessMonitor
from nvflare.private.fed.app.server import server_train
from nvflare.private.fed.server import job_cmds

from server.gate import JobGate, log_refused_connections

_WAIT_FOR_SITES_SECONDS = 1.0  # for their farewell; FLARE's 30 s are longer than service managers wait
_WAIT_FOR_JOBS_SECONDS = 6.0  # to write down what they have reached


def run_server(workspace: Path, organisation: str, ready: Callable[[], None]) -> int:
    """Run until an administrator, or SIGTERM, ends it; the exit code.

    Args:
        workspace: a server's kit, unpacked; jobs and logs are written there.
        organisation: who runs the server.
        ready: called once the server accepts connections.
    """
    create = server_train.create_admin_server

    def create_admin_server(services: Any, *arguments: Any, **options: Any) -> Any:
        admin_server = create(services, *arguments, **options)
        services.shutdown_period = _WAIT_FOR_SITES_SECONDS
        start = admin_server.start

        def started() -> None:
            start()
            # in a thread of its own: what it needs may be held by what the signal interrupted
            signal.signal(
                signal.SIGTERM,
                lambda number, frame: threading.Thread(target=_leave, args=(services.engine,), daemon=True).start(),
            )
            ready()

        admin_server.start = started
        return admin_server

    server_train.create_admin_server = create_admin_server
    job_cmds.JobMetaValidator = partial(JobGate, workspace)
    log_refused_connections()
    settings = ["secure_train=true", f"org={organisation}", "config_folder=config"]
    arguments = Namespace(workspace=str(workspace), fed_server="fed_server.json", set=settings)
    code = MainProcessMonitor.run(
        main_func=server_train.main, run_dir=str(workspace), shutdown_grace_time=1, args=arguments
    )
    return int(code or 0)


def _leave(engine: Any) -> None:
    """End the jobs first, so that their results are stored and their state is not RUNNING for ever; then the server."""
    runner = engine.job_runner
    context = engine.new_context()
    end = time.monotonic() + _WAIT_FOR_JOBS_SECONDS
    for job_id in list(engine.run_processes):
        runner.stop_run(job_id, context)
    while runner.running_jobs and time.monotonic() < end:
        time.sleep(0.1)
    for job_id in list(runner.running_jobs):  # on a busy machine: stored as it is, not left as RUNNING
        runner._save_workspace(context, job_id=job_id)
        engine.job_def_manager.set_status(job_id, RunStatus.FINISHED_ABORTED, context)
    engine.shutdown_server()
