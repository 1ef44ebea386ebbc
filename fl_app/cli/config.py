"""`fedspleen config`: look at settings and check job files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fl_app.cli.console import print_settings
from fl_app.config import Job
from fl_app.config_file import load_job
from fl_app.errors import UsageError

app = typer.Typer(no_args_is_help=True, help="Job files.")


@app.command("show")
def config_show(
    file: Annotated[Path | None, typer.Argument(help="A job file; none: the defaults.")] = None,
    markdown: Annotated[
        bool, typer.Option("--markdown", help="Print docs/configuration.md: all settings of all files.")
    ] = False,
) -> None:
    """Print every setting with its value, default, unit and meaning."""
    if markdown:
        from fl_app.cli.markdown import configuration_page

        if file:
            raise UsageError(f"--markdown: describes all settings, not those of {file} - leave the file out")
        print(configuration_page(), end="")
        return
    print_settings(str(file) if file else "Defaults", load_job(file) if file else Job(), Job())


@app.command("check")
def config_check(file: Annotated[Path, typer.Argument(help="A job file.")]) -> None:
    """Say whether a job file is right; exit with 2 and all its mistakes if not."""
    load_job(file)
    print(f"{file}: right")
