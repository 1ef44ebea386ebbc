"""`fedspleen config`: look at settings and check job files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fl_app.cli.console import print_settings
from fl_app.config import Job
from fl_app.config_file import load_job

app = typer.Typer(no_args_is_help=True, help="Job files.")


@app.command("show")
def config_show(file: Annotated[Path | None, typer.Argument(help="A job file; none: the defaults.")] = None) -> None:
    """Print every setting with its value, default, unit and meaning."""
    print_settings(str(file) if file else "Defaults", load_job(file) if file else Job(), Job())


@app.command("check")
def config_check(file: Annotated[Path, typer.Argument(help="A job file.")]) -> None:
    """Say whether a job file is right; exit with 2 and all its mistakes if not."""
    load_job(file)
    print(f"{file}: right")
