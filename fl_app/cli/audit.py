"""`fedspleen audit`: whether an audit trail is as it was written."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from fl_app.cli.console import open_console

app = typer.Typer(no_args_is_help=True, help="Audit trails.")


@app.callback()
def _group() -> None:
    """Keeps `verify` a command of its own while it is the only one."""


@app.command("verify")
def audit_verify(
    file: Annotated[Path, typer.Argument(help="An audit trail, of the server or of a site.", show_default=False)],
    head: Annotated[
        str | None, typer.Option(help="The head as it was noted down earlier: shows whether lines are missing since.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Say whether every line is as it was written, and if not, which is the first that was changed, removed or moved.

    Exit code 0: intact. 1: not.
    """
    from fl_app.ledger import verify_ledger  # imports torch: seconds that other commands need not wait

    report = verify_ledger(file, head)
    if as_json:
        print(json.dumps({"intact": not report.problem, **asdict(report)}, indent=2))
    else:
        console = open_console()
        span = f", {report.first} to {report.last}" if report.lines else ""
        if report.torn:
            left = f"{report.torn} bytes at the end are a line that was never finished, as a kill leaves it"
            console.print(f"note: {left}; the lines before it are whole", markup=False, soft_wrap=True)
        if report.problem:
            console.print(f"{file}: WRONG: {report.problem}", markup=False, soft_wrap=True, style="bold red")
            console.print(f"the {report.lines} lines before it are intact{span}", markup=False, soft_wrap=True)
        else:
            console.print(f"{file}: intact, {report.lines} lines{span}", markup=False, soft_wrap=True)
        console.print(f"head: {report.head}", markup=False, soft_wrap=True)
    if report.problem:
        raise typer.Exit(1)
