"""`fedspleen server`: the consortium's server on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True, help="The consortium's server.")
Kit = Annotated[Path, typer.Argument(help="The folder of the server's kit.", show_default=False)]
Workspace = Annotated[Path | None, typer.Option(help="Folder for jobs and logs.", show_default="the kit's folder")]


@app.command("start")
def server_start(kit: Kit, workspace: Workspace = None) -> None:
    """Run the server in the foreground; Ctrl-C or SIGTERM ends it. Jobs that ran go on when it is started again."""
    from fl_app.deployment.participant import run_server

    run_server(kit, workspace, lambda news: print(news, flush=True))


@app.command("stop")
def server_stop(
    kit: Kit,
    workspace: Workspace = None,
    timeout: Annotated[float, typer.Option(min=0, help="How many seconds to wait for its end.")] = 30,
) -> None:
    """Ask the running server to end, and wait until it has; its jobs go on when it is started again."""
    from fl_app.deployment.lock import stop

    name, seconds = stop(workspace or kit, "server", timeout)
    print(f"{name} stopped after {seconds:.1f} s")
