"""`fedspleen client`: a site on this machine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True, help="This hospital's site.")
Kit = Annotated[Path, typer.Argument(help="The folder of the site's kit.", show_default=False)]
Data = Annotated[
    Path | None, typer.Option(help="This site's images and labels; may be read-only.", show_default="site.yaml's")
]
SiteFile = Annotated[Path | None, typer.Option(help="The site's settings.", show_default="site.yaml in KIT, if any")]


@app.command("start")
def client_start(kit: Kit, data: Data = None, site: SiteFile = None) -> None:
    """Run the site in the foreground; Ctrl-C or SIGTERM makes it take leave of the server and end."""
    from fl_app.deployment.participant import run_site, site_settings

    run_site(kit, site_settings(kit, data, site), lambda news: print(news, flush=True))


@app.command("check")
def client_check(
    kit: Kit,
    data: Data = None,
    site: SiteFile = None,
    job: Annotated[
        Path | None, typer.Option(help="A job file to check the data against.", show_default="default settings")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Check kit, connection, data, device, disk and versions; all problems at once, each with its remedy.

    Works before the server is up, and says what could not be checked then. Exit code 0: nothing speaks against
    starting. 1: something does.
    """
    from fl_app.config import Job
    from fl_app.config_file import load_job
    from fl_app.data.findings import format_findings
    from fl_app.deployment.participant import site_settings
    from fl_app.deployment.preflight import check_client

    report = check_client(kit, site_settings(kit, data, site), load_job(job) if job else Job())
    if as_json:
        print(json.dumps(report.as_dict(), indent=2))
    else:
        for what, fact in report.facts.items():
            print(f"{what + ':':<14}{fact}")
        for what in report.unchecked:
            print(f"not checked:  {what}")
        print(format_findings(report.findings))
    if not report.good:
        raise typer.Exit(1)
