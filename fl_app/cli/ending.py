"""Where a run's result goes, and what is printed at its end, wherever it ran."""

from __future__ import annotations

import shutil
import sys
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from fl_app.config import Job

if TYPE_CHECKING:
    from rich.console import Console

    from fl_app.result import Result


def result_folder(job: Job, out: Path | None) -> Path:
    """The folder that was asked for, or a new one in ``results``."""
    return out or Path("results") / f"{job.name}-{datetime.now():%Y%m%d-%H%M%S}"


def print_end(console: Console, result: Result, out: Path, compared: bool = False) -> None:
    """Test scores, what is to be kept in mind about them, and where all of it is; the report is written.

    Raises:
        typer.Exit: with code 3, if the run falls short of what was asked for: scripts must not take it for a success.
    """
    from fl_app.curves import CURVES
    from fl_app.reports.page import write_report
    from fl_app.reports.tables import table_of_models, table_of_personal, table_of_tests
    from fl_app.verdict import shortfalls

    if result.final:
        console.print(table_of_tests(result))
    if result.personal:
        console.print(table_of_personal(result))
    if compared:
        console.print(table_of_models(result))
    for caveat in result.caveats:
        console.print(f"caution: {caveat}", style="bold yellow")
    console.print(f"{result.seconds:.0f} s; result, model and logs are in {out}")
    # typed in a shell where this environment is active, or not
    tensorboard = "tensorboard" if shutil.which("tensorboard") else f"{sys.executable} -m tensorboard.main"
    console.print(f"curves: {tensorboard} --logdir {out / CURVES}", soft_wrap=True)
    console.print(f"report: {write_report(out)}", soft_wrap=True)
    if shortfalls(result):
        raise typer.Exit(3)
