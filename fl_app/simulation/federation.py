"""Run the federation of a simulation as processes, and gather what they leave."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from fl_app.errors import FederationError
from fl_app.processes import running
from fl_app.result import Baseline, read_result, write_result
from fl_app.simulation.parts import Events
from fl_app.under_way import UNDER_WAY, UnderWay, read_under_way

_POLL_SECONDS = 0.2


def federate(out: Path, sites: list[str], turns: bool, environment: dict[str, str], events: Events) -> None:
    """Run the job until it has ended, well or not.

    Args:
        out: the result's folder, with the job's file and the sites' settings in it.
        sites: their names.
        turns: they take turns in one process, in place of one for each in FLARE's simulator.
        environment: variables for the processes.
        events: what the caller hears.

    Raises:
        FederationError: there is no result at all.
    """
    # elsewhere if need be; on a path without spaces logs are found in the result's folder while the run goes on
    apart = tempfile.mkdtemp(prefix="fedspleen-") if has_spaces(out.absolute()) and not turns else None
    workspace = (Path(apart) if apart else out.absolute() / "flare") / "run"
    growing = out / "result.json"
    if turns:
        command = [sys.executable, "-m", "fl_app.rehearsal", str(out.absolute()), *sites]
    else:
        command = [sys.executable, "-m", "fl_app.job", str(workspace.parent), str(out.absolute() / "job.yaml"), *sites]
    try:
        with running(command, out / "logs" / "simulator.log", environment) as process:
            _follow(process, growing, events)
    finally:
        _collect(workspace, out, sites)
    if not (out / "result.json").exists():
        raise FederationError(f"the simulation ended before the server had begun; see {out / 'logs' / 'simulator.log'}")


def has_spaces(path: Path) -> bool:
    """Whether FLARE's simulator, which takes its processes' command lines apart at spaces, fails on this path."""
    return any(character.isspace() for character in str(path))


def _follow(process: subprocess.Popen[bytes], growing: Path, events: Events) -> None:
    """Report progress until the run has ended: by its own word, or because the process is gone."""
    seen, told = 0, UnderWay()
    while True:
        ended = process.poll() is not None
        changed = growing.stat().st_mtime_ns if growing.exists() else 0
        under_way = read_under_way(growing.with_name(UNDER_WAY))
        if changed and (changed, under_way) != (seen, told):
            seen, told = changed, under_way
            result = read_result(growing)
            events.progress(result, under_way)
            # the simulator takes seconds to take itself down; there is nothing in them to wait for
            ended = ended or result.status != "running"
        if ended:
            return
        time.sleep(_POLL_SECONDS)


def _collect(workspace: Path, out: Path, sites: list[str]) -> None:
    """Move what is worth keeping from FLARE's workspace into the result's folder."""
    logs = {"server": workspace / "server" / "log.txt"}
    logs |= {site: workspace / site / "log.txt" for site in sites}
    for name, path in logs.items():
        if path.exists():
            shutil.move(path, out / "logs" / f"{name}.log")
    shutil.rmtree(workspace.parent, ignore_errors=True)
    path = out / "result.json"
    if path.exists():
        result = read_result(path)
        if result.status == "running":
            result.status, result.error = "interrupted", "the run was ended before its last round"
            write_result(path, result)


def compare_with_baselines(out: Path, sites: list[str], events: Events) -> None:
    """Train without federation, with the same code and budget; the scores go into ``result.json``."""
    path = out / "result.json"
    result = read_result(path)
    command = [sys.executable, "-m", "fl_app.baselines", str(out.absolute()), *sites]
    with running(command, out / "logs" / "baselines.log", {}) as process:
        while process.poll() is None:
            for name in [*(f"local-{site}" for site in sites), "centralised"]:
                report = out / "baselines" / f"{name}.json"
                if name not in result.baselines and report.exists():
                    result.baselines[name] = Baseline.model_validate_json(report.read_text())
                    write_result(path, result)
                    events.baseline(name)
            time.sleep(_POLL_SECONDS)
    if process.returncode or len(result.baselines) < len(sites) + 1:
        raise FederationError(f"the baselines could not be trained; see {out / 'logs' / 'baselines.log'}")
