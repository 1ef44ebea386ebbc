"""Submit a job to real sites, follow it, and bring its result home as the simulator leaves it."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import yaml

from fl_app.config import Job
from fl_app.curves import CURVES
from fl_app.deployment.connection import reach_server
from fl_app.deployment.kit import open_kit
from fl_app.errors import ConfigError, FederationError, UsageError
from fl_app.result import Result, read_result, write_result
from fl_app.under_way import UnderWay

if TYPE_CHECKING:
    from server.administration import Administration, JobState

_POLL_SECONDS = 1.0
_ASK_AGAIN_SECONDS = 3.0  # whether the server is back
_TRIES = 3


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
    kit: Path, job_id: str, progress: Callable[[Result, UnderWay], None], say: Callable[[str], None], patience: float
) -> JobState:
    """Report progress until the job has ended; how it ended.

    The growing ``result.json`` comes with FLARE's ``show_stats``, which the workflow answers from its job's process.

    Args:
        kit: an administrator's.
        job_id: the job.
        progress: takes the result so far, and what the sites are doing.
        say: takes one line of news.
        patience: seconds without a sign from the server after which to give up; the job goes on.

    Raises:
        FederationError: there is no such job, or the server was away for longer.
    """
    told, heard, known = "", time.monotonic(), False
    while True:
        try:
            with connect(kit) as admin:
                known = bool(admin.state(job_id))
                while True:
                    state, news = _look(admin, job_id, progress)
                    heard = time.monotonic()
                    if state.ended:
                        return state
                    if news and news != told:
                        say(news)
                    told = news or told
                    time.sleep(_POLL_SECONDS)
        except FederationError as error:
            if not known or time.monotonic() - heard > patience:
                raise
            news = f"the server is away ({error}); waiting for it"
            if not told.startswith("the server is away"):
                say(news)
            told = news
            time.sleep(_ASK_AGAIN_SECONDS)


def _look(admin: Administration, job_id: str, progress: Callable[[Result, UnderWay], None]) -> tuple[JobState, str]:
    """How the job stands, and a line of news if it does not run."""
    state = admin.state(job_id)
    told = admin.progress(job_id) if state.status == "RUNNING" else None
    if told:
        progress(*told)
    if state.ended or told:
        return state, ""
    # after its server was started again, a job waits for its sites
    words = "starting, or waiting for its sites" if state.status == "RUNNING" else state.status.lower()
    waiting = f"job {job_id} is {words}; connected: {', '.join(admin.sites()) or 'no site'}"
    return state, waiting + (f" ({state.note})" if state.note else "")


def require_new(out: Path) -> None:
    """Raise UsageError if a folder holds a result already."""
    if (out / "result.json").exists():
        raise UsageError(f"--out {out}: holds the result of another run - name a new folder")


def download(kit: Path, job_id: str, out: Path) -> Result:
    """Leave the same folder as the simulator does; sites' logs and case scores stay at the sites."""
    require_new(out)
    with TemporaryDirectory(prefix="fedspleen-") as folder:
        state, left = _fetch(kit, job_id, Path(folder))
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
        shutil.rmtree(out / CURVES, ignore_errors=True)  # those of the one who followed; the server's are complete
        for item in (left / "result").iterdir():
            shutil.move(item, out / item.name)
    result = read_result(out / "result.json")
    if result.status == "running":
        result.status, result.error = "interrupted", "the job was ended before its last round"
        write_result(out / "result.json", result)
    (out / "job.yaml").write_text(yaml.safe_dump(result.config, sort_keys=False))
    return result


def _fetch(kit: Path, job_id: str, folder: Path) -> tuple[JobState, Path]:
    """How a job ended, and what it left, below a folder; a connection that breaks on the way is made again."""
    tries = _TRIES
    while True:
        tries -= 1
        try:
            with connect(kit) as admin:
                state = admin.state(job_id)
                return state, _find(admin.download(job_id, folder / str(tries)))
        except FederationError:
            if not tries:
                raise
            time.sleep(_ASK_AGAIN_SECONDS)


def _find(folder: Path) -> Path:
    """The server's folder of the job in what FLARE packs: the one that holds the job's result or log."""
    for name in ("result/result.json", "log.txt"):
        for path in sorted(folder.rglob(name)):
            return path.parents[name.count("/")]
    return folder
