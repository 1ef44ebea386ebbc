"""`fedspleen submit`, `status`, `follow`, `abort`, `download`: a job at real sites, from the lead's machine."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from fl_app.cli.console import open_console
from fl_app.cli.ending import print_end, result_folder
from fl_app.config_file import load_job
from fl_app.errors import FederationError
from fl_app.processes import Interrupted

if TYPE_CHECKING:
    from rich.console import Console

    from fl_app.curves import Paper
    from fl_app.reports.progress import Progress
    from fl_app.result import Result
    from fl_app.under_way import UnderWay
    from server.administration import JobState

AdminKit = Annotated[Path, typer.Option(help="The folder of your own, an administrator's, kit.", show_default=False)]
Patience = Annotated[
    float, typer.Option(min=0, help="How many minutes the server may be away before this command gives up.")
]
JobId = Annotated[str, typer.Argument(help="The job, as `fedspleen submit` or `status` names it.", show_default=False)]


def submit(
    job: Annotated[Path, typer.Argument(help="A job file; the only thing that is sent.", show_default=False)],
    kit: AdminKit,
    out: Annotated[
        Path | None, typer.Option(help="A new folder for the result.", show_default="results/NAME-DATE-TIME")
    ] = None,
    sites: Annotated[
        int | None,
        typer.Option(min=1, help="Wait for so many sites to be connected.", show_default="those connected now"),
    ] = None,
    detach: Annotated[bool, typer.Option("--detach", help="Print the job's identifier and return.")] = False,
    patience: Patience = 10,
) -> None:
    """Submit a job, follow it to its end and download its result."""
    from fl_app.curves import CURVES, TensorBoard
    from fl_app.deployment import jobs
    from fl_app.reports.progress import Progress

    described = load_job(job)
    out = result_folder(described, out)
    jobs.require_new(out)
    with jobs.connect(kit) as admin:
        job_id = jobs.submit(admin, described, sites)
    print(job_id if detach else f"job {job_id} submitted; result folder: {out}", flush=True)
    if not detach:
        console = open_console()
        with Progress(console) as progress:
            _follow(job_id, kit, console, progress, patience, [TensorBoard(out / CURVES)])
            # the last rounds may have ended between two looks at the server
            result = jobs.download(kit, job_id, out)
            progress.update(result)
        _require_finished(result, out)
        print_end(console, result, out)


def follow(
    job_id: JobId,
    kit: AdminKit,
    tensorboard: Annotated[
        Path | None, typer.Option(help="A folder for curves as they grow: tensorboard --logdir FOLDER.")
    ] = None,
    mlflow: Annotated[
        str | None, typer.Option(help="Address of an MLflow tracking server, for the same curves.")
    ] = None,
    patience: Patience = 10,
) -> None:
    """Show a job's progress until it has ended, as the simulator does; a server that is away is waited for.

    Exit code 0: the job ended well. 1: it did not.
    """
    from fl_app.curves import TensorBoard
    from fl_app.mlflow_run import MlflowRun
    from fl_app.reports.progress import Progress

    papers: list[Paper] = [TensorBoard(tensorboard)] if tensorboard else []
    papers += [MlflowRun(mlflow, job_id)] if mlflow else []
    console = open_console()
    with Progress(console) as progress:
        state = _follow(job_id, kit, console, progress, patience, papers)
    status = f"{state.status}: {state.note}" if state.note else state.status
    print(f"job {job_id} has ended: {status}; `fedspleen download` brings its result home")
    if not state.completed:
        raise typer.Exit(1)


def status(
    kit: AdminKit,
    job_id: Annotated[str | None, typer.Argument(help="A job.", show_default="all jobs and sites")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")] = False,
) -> None:
    """Say which sites are connected, and how jobs stand."""
    from fl_app.deployment import jobs

    with jobs.connect(kit) as admin:
        sites = admin.sites()
        states = [admin.state(job_id)] if job_id else admin.jobs()
    if as_json:
        told = [{**asdict(state), "ended": state.ended} for state in states]
        print(json.dumps({"sites": sites, "jobs": told}, indent=2))
        return
    if job_id is None:
        print(f"connected sites: {', '.join(sites) or 'none'}")
    table = Table()
    for heading in ("job", "name", "status", "submitted", "by", "why"):
        table.add_column(heading, overflow="fold")
    for state in states:
        table.add_row(state.job_id, state.name, state.status, state.submitted, state.submitter, state.note)
    if states:
        open_console().print(table)


def abort(job_id: JobId, kit: AdminKit) -> None:
    """End a job early; what was reached can be downloaded."""
    from fl_app.deployment import jobs

    with jobs.connect(kit) as admin:
        admin.abort(job_id)
    print(f"job {job_id} is being ended")


def download(
    job_id: JobId,
    kit: AdminKit,
    out: Annotated[Path, typer.Option(help="A new folder for the result.", show_default=False)],
) -> None:
    """Bring the result of a job that has ended home, as the simulator leaves it."""
    from fl_app.deployment import jobs

    result = jobs.download(kit, job_id, out)
    _require_finished(result, out)
    print_end(open_console(), result, out)


def _follow(
    job_id: str, kit: Path, console: Console, progress: Progress, patience: float, papers: Sequence[Paper]
) -> JobState:
    """How the job ended; its curves grow on the papers."""
    from fl_app.curves import Curves
    from fl_app.deployment import jobs

    curves = [Curves(paper) for paper in papers]

    def show(result: Result, under_way: UnderWay) -> None:
        progress.update(result, under_way)
        for drawn in curves:
            drawn.update(result)

    try:
        state = jobs.follow(kit, job_id, show, lambda news: console.print(news, soft_wrap=True), patience * 60)
    except Interrupted:
        print(f"the job goes on; `fedspleen follow {job_id} --kit {kit}` shows it, `fedspleen abort` ends it")
        raise
    finally:
        for drawn in curves:
            drawn.close()
    return state


def _require_finished(result: Result, out: Path) -> None:
    from fl_app.reports.page import write_report

    if result.status != "finished":
        write_report(out)
        raise FederationError(f"{result.error or 'the job ended early'} (what was reached: {out})")
