"""Run a server or a site in the foreground, until a signal or an administrator ends it."""

from __future__ import annotations

import errno
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from fl_app.data.cases import find_cases
from fl_app.data.findings import format_findings
from fl_app.deployment.connection import Connection, probe
from fl_app.deployment.console import CONSOLE_LOG, console_log
from fl_app.deployment.kit import Kit, open_kit
from fl_app.deployment.lock import sole_runner
from fl_app.errors import FederationError, UsageError
from fl_app.messages import LOCKED_OUT
from fl_app.processes import Interrupted, running
from fl_app.site import SITE_FILE_VARIABLE, SiteSettings, read_site, write_site

Say = Callable[[str], None]
_POLL_SECONDS = 0.1
_START_SECONDS = 60.0  # until a server listens, or a reachable server has registered the site
_LEAVE_SECONDS = 12.0  # for an orderly end after a signal; what is left then is killed
_FREE_SECONDS = 3.0  # until the port of a server that was just killed is free
_ASK_AGAIN_SECONDS = 3.0  # whether the server is there by now
SITE_FILE = "site.yaml"


def run_server(folder: Path, workspace: Path | None, say: Say) -> None:
    """Run the server until it is asked to end.

    Args:
        folder: the server's kit.
        workspace: where jobs and logs go; none: the kit's folder.
        say: one line of news.

    Raises:
        UserError: why it cannot run.
    """
    from provisioning.flare import place_server_storage
    from provisioning.kit_file import read_kit, write_folder

    kit = open_kit(folder, "server")
    if kit.warning:
        say(f"caution: {kit.warning}")
    place = (workspace or kit.folder).absolute()
    place.mkdir(parents=True, exist_ok=True)
    with sole_runner(place, "server", kit.name):
        if workspace:
            write_folder(workspace, read_kit(folder).files)
        place_server_storage(place)
        _check_port(kit)
        news = f"server of {kit.report.consortium} ready at {kit.report.server}"
        # its sums are short: several threads would mostly wait for each other where other programs run, too
        threads = {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
        _run(kit, "server", place, threads, lambda: say(news), say)


def run_site(folder: Path, settings: SiteSettings, say: Say) -> None:
    """Run a site's client until it is asked to end.

    Args:
        folder: the site's kit.
        settings: its data folder, device and so on.
        say: one line of news.

    Raises:
        UserError: why it cannot run.
    """
    kit = open_kit(folder, "site")
    if kit.warning:
        say(f"caution: {kit.warning}")
    with sole_runner(kit.folder, "site", kit.name):
        dataset = find_cases(settings.data)
        errors = [problem for problem in dataset.problems if problem.severity == "error"]
        if errors:
            say(f"caution: {settings.data}:\n{format_findings(errors)}")
        say(f"site {kit.name}: {len(dataset.cases)} cases in {settings.data}")
        _wait_for_server(kit, say)
        in_use = kit.folder / "site-in-use.yaml"
        # each job's scores have a folder of their own; load_site puts the job's identifier into its name
        output, state = settings.output or kit.folder / "output", settings.state or kit.folder / "state"
        write_site(in_use, settings.model_copy(update={"output": output / "{job}", "state": state / "{job}"}))
        environment = {SITE_FILE_VARIABLE: str(in_use)}
        if settings.threads:
            environment["OMP_NUM_THREADS"] = str(settings.threads)
        registered = f"site {kit.name} registered with server {kit.report.server}"
        _run(kit, "site", kit.folder, environment, lambda: say(registered), say)


def site_settings(kit: Path, data: Path | None, file: Path | None) -> SiteSettings:
    """A site's settings: its ``site.yaml``, by default the one in the kit's folder, and what the command line says.

    Cache, output and state are in the kit's folder unless the file says otherwise: the data folder may be read-only.
    """
    beside = kit / SITE_FILE
    if file is None and beside.exists():
        file = beside
    if file is not None:
        settings = read_site(file)
    elif data is not None:
        settings = SiteSettings(data=data)
    else:
        raise UsageError(f"--data is missing: the folder with this site's images, here or as `data:` in {beside}")
    changes: dict[str, Path] = {"data": (data or settings.data).absolute()}
    for name in ("cache", "output", "state"):
        chosen: Path | None = getattr(settings, name)
        changes[name] = (chosen or kit / name).absolute()
    return settings.model_copy(update=changes)


def _check_port(kit: Kit) -> None:
    end = time.monotonic() + _FREE_SECONDS
    while (problem := _bind(kit)) and problem.errno == errno.EADDRINUSE and time.monotonic() < end:
        time.sleep(_POLL_SECONDS)
    if isinstance(problem, PermissionError):
        raise FederationError(f"port {kit.port}: an ordinary user may not open it - choose one above 1023")
    if problem:
        raise FederationError(
            f"port {kit.port} cannot be opened: {problem.strerror} - is a server of yours, or another program, "
            f"running already? `ss -ltnp 'sport = :{kit.port}'` shows which"
        )


def _bind(kit: Kit) -> OSError | None:
    """Why the server's port cannot be opened; none if it can."""
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((kit.host, kit.port))
        except OSError as problem:
            return problem
    return None


def _wait_for_server(kit: Kit, say: Say) -> None:
    """Return once the server accepts this site's certificate; wait as long as it is not there at all."""
    told = ""
    while True:
        connection: Connection = probe(kit)
        if connection.accepted:
            return
        if connection.proxy:
            say(connection.findings[0].problem)
            return
        if not connection.may_come:
            finding = connection.findings[0]
            raise FederationError(f"{finding.problem} - {finding.remedy}")
        news = connection.findings[0].problem
        if news != told:
            told = news
            say(f"waiting for the server: {news}")
        time.sleep(_ASK_AGAIN_SECONDS)


def _run(
    kit: Kit, kind: str, workspace: Path, environment: Mapping[str, str], ready: Callable[[], None], say: Say
) -> None:
    ready_file = workspace / "ready.fl"
    ready_file.unlink(missing_ok=True)
    command = [sys.executable, "-m", "fl_app.deployment.process"]
    command += [kind, str(workspace), kit.name, kit.report.organisation, str(ready_file)]
    started = False
    try:
        with (
            console_log(workspace / CONSOLE_LOG) as output,
            running(command, output, {"MALLOC_ARENA_MAX": "4", **environment}) as process,
        ):
            try:
                started = _wait_until_ready(process, ready_file, kit, kind, workspace)
                if started:
                    ready()
                    process.wait()
            except Interrupted as end:
                started = True
                say(f"{end}: {kit.name} takes its leave")
                process.terminate()
                _wait(process, _LEAVE_SECONDS)
    finally:
        ready_file.unlink(missing_ok=True)
    if (workspace / "restart.fl").exists():
        raise FederationError("an administrator asked for a restart: start it again")
    if not started:
        raise FederationError(f"{kit.name} could not start: {last_error(workspace)}")
    if process.returncode and process.returncode > 0:
        raise FederationError(f"{kit.name} ended: {last_error(workspace)}")
    say(f"{kit.name} stopped")


def _wait_until_ready(process: subprocess.Popen[bytes], ready_file: Path, kit: Kit, kind: str, workspace: Path) -> bool:
    """Whether it got ready before it ended."""
    end = time.monotonic() + _START_SECONDS
    while not ready_file.exists():
        if process.poll() is not None:
            return False
        if time.monotonic() > end:
            what = "the server did not register this site" if kind == "site" else "the server did not get ready"
            why = (
                f"is {kit.name} locked out, or did it get a kit with another name? The lead of "
                f"{kit.report.consortium} sees the reason in the server's log.txt"
            )
            raise FederationError(
                f"{what} within {_START_SECONDS:.0f} s" + (f" - {why}" if kind == "site" else f": see {workspace}")
            )
        time.sleep(_POLL_SECONDS)
    return True


def _wait(process: subprocess.Popen[bytes], seconds: float) -> None:
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        return  # the caller's `running` ends it


def last_error(workspace: Path) -> str:
    """The first error of this start, which the others follow from, and where the rest is."""
    console = workspace / CONSOLE_LOG
    text = console.read_text(errors="replace") if console.exists() else ""
    errors = [line.split(" - ERROR - ", 1)[1] for line in text.splitlines() if " - ERROR - " in line]
    told = errors[0].removeprefix(" - ")[:300] if errors else "FLARE gave no reason"
    if any("Client '" in each and LOCKED_OUT in each for each in errors):
        told = "the server has locked this site out (`fedspleen kit revoke`) - ask the lead of the consortium why"
    return f"{told} (log: {workspace / 'log.txt'})"
