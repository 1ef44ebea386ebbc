"""FLARE's server as this process; SIGTERM ends it as its own administrators' command does."""

from __future__ import annotations

import signal
import threading
from argparse import Namespace
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from nvflare.fuel.f3.mpm import MainProcessMonitor
from nvflare.private.fed.app.deployer import server_deployer
from nvflare.private.fed.app.server import server_train
from nvflare.private.fed.server import job_cmds

from server.gate import JobGate, log_refused_connections
from server.lasting_jobs import LastingJobRunner

_WAIT_FOR_SITES_SECONDS = 1.0  # for their farewell; FLARE's 30 s are longer than service managers wait


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
                lambda number, frame: threading.Thread(target=services.engine.shutdown_server, daemon=True).start(),
            )
            ready()

        admin_server.start = started
        return admin_server

    server_train.create_admin_server = create_admin_server
    server_deployer.JobRunner = LastingJobRunner
    job_cmds.JobMetaValidator = partial(JobGate, workspace)
    log_refused_connections()
    settings = ["secure_train=true", f"org={organisation}", "config_folder=config"]
    arguments = Namespace(workspace=str(workspace), fed_server="fed_server.json", set=settings)
    code = MainProcessMonitor.run(
        main_func=server_train.main, run_dir=str(workspace), shutdown_grace_time=1, args=arguments
    )
    return int(code or 0)
