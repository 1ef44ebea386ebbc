"""Submit a job to real sites, follow it, and bring its result home as the simulator leaves it."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, closing
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import yaml

from fl_app.config import Job
from fl_app.deployment.connection import reach_server
from fl_app.deployment.kit import open_kit
from fl_app.errors import ConfigError, FederationError, UsageError
from fl_app.result import Result, read_result, write_result

if TYPE_CHECKING:
    from server.administration import Administration, JobState

_POLL_SECONDS = 1.0
_SILENCE_SECONDS = 180.0  # a running job's process tells its progress, once it has started


def connect(kit: Path) -> AbstractContextManager[Administration]:
    """A session with the server that an administrator's kit leads to."""
    from server.administration import administration

    opened = open_kit(kit, "administrator")
    reach_server(opened)
    return administration(opened.folder, opened.name, opened.report.server)


def submit(admin: Administration, job: Job, sites: int | None = None) -> str:
    """Hand in a job for the sites that are connected; its identifier.

    Args:
        admin: a session of a lead.
        job: the job; nothing else travels, no code.
        sites: wait, at the server, until so many sites are connected; none: those that are connected now.
    """
    from fl_app.job import build_flare_job

    connected = admin.sites()
    if not connected and not sites:
        raise FederationError("no site is connected - start one, or let the job wait for them with --sites N")
    count = sites or len(connected)
    if job.federation.min_sites > count:
        raise ConfigError(f"federation.min_sites: {job.federation.min_sites} - at most {count}, which take part")
    with TemporaryDirectory(prefix="fedspleen-") as folder:
        build_flare_job(job, count).export_job(folder)
        return admin.submit(Path(folder) / job.name)


def follow(
    admin: Administration, job_id: str, progress: Callable[[Result], None], say: Callable[[str], None]
) -> JobState:
    """Report progress until the job has ended; how it ended.

    The growing ``result.json`` comes with FLARE's ``show_stats``, which the workflow answers from its job's process.
    """
    told, heard = "", time.monotonic()
    while True:
        state = admin.state(job_id)
        if state.ended:
            return state
        if state.status == "RUNNING":
            result = admin.progress(job_id)
            if result:
                heard = time.monotonic()
                progress(result)
            elif time.monotonic() - heard > _SILENCE_SECONDS:
                raise FederationError(
                    f"job {job_id} gives no sign of life: FLARE does not continue a job whose server was killed - "
                    "submit it again; what it had reached is in the server's folder of that name"
                )
        else:
            heard = time.monotonic()
            waiting = f"{state.status.lower()}; connected: {', '.join(admin.sites()) or 'no site'}"
            waiting += f" ({state.note})" if state.note else ""
            if waiting != told:
                told = waiting
                say(f"job {job_id} is {waiting}")
        time.sleep(_POLL_SECONDS)


def require_new(out: Path) -> None:
    """Raise UsageError if a folder holds a result already."""
    if (out / "result.json").exists():
        raise UsageError(f"--out {out}: holds the result of another run - name a new folder")


def download(admin: Administration, job_id: str, out: Path) -> Result:
    """Leave the same folder as the simulator does; sites' logs and case scores stay at the sites."""
    from fl_app.reports.curves import Curves

    require_new(out)
    state = admin.state(job_id)
    with TemporaryDirectory(prefix="fedspleen-") as folder:
        located = admin.download(job_id, Path(folder))
        left = _find(located)
        log = left / "log.txt"
        told = "the server's log says why"
        if log.exists():
            told = f"see {out / 'logs' / 'server.log'}"
            (out / "logs").mkdir(parents=True, exist_ok=True)
            shutil.move(log, out / "logs" / "server.log")
        if not (left / "result" / "result.json").exists():
            raise FederationError(
                f"job {job_id} ended before the server had begun ({state.status}): {state.note or told}"
            )
        out.mkdir(parents=True, exist_ok=True)
        for item in (left / "result").iterdir():
            shutil.move(item, out / item.name)
    result = read_result(out / "result.json")
    if result.status == "running":
        result.status, result.error = "interrupted", "the job was ended before its last round"
        write_result(out / "result.json", result)
    (out / "job.yaml").write_text(yaml.safe_dump(result.config, sort_keys=False))
    with closing(Curves(out / "tensorboard")) as curves:
        curves.update(result)
    return result


def _find(folder: Path) -> Path:
    """The server's folder of the job in what FLARE packs: the one that holds the job's result or log."""
    for name in ("result/result.json", "log.txt"):
        for path in sorted(folder.rglob(name)):
            return path.parents[name.count("/")]
    return folder
