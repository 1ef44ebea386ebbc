"""`fedspleen server`: the consortium's server on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True, help="The consortium's server.")


@app.callback()
def _group() -> None:
    """The consortium's server."""


@app.command("start")
def server_start(
    kit: Annotated[Path, typer.Argument(help="The folder of the server's kit.", show_default=False)],
    workspace: Annotated[
        Path | None, typer.Option(help="Folder for jobs and logs.", show_default="the kit's folder")
    ] = None,
) -> None:
    """Run the server in the foreground; Ctrl-C or SIGTERM ends it, with its jobs, in an orderly way."""
    from fl_app.deployment.participant import run_server

    run_server(kit, workspace, lambda news: print(news, flush=True))
