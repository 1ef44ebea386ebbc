"""`fedspleen client`: a site on this machine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from fl_app.cli.console import print_settings

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


@app.command("stop")
def client_stop(
    kit: Kit, timeout: Annotated[float, typer.Option(min=0, help="How many seconds to wait for its end.")] = 30
) -> None:
    """Ask the running site to take leave of the server and to end, and wait until it has."""
    from fl_app.deployment.lock import stop

    name, seconds = stop(kit, "site", timeout)
    print(f"{name} stopped after {seconds:.1f} s")


@app.command("check")
def client_check(
    kit: Kit,
    data: Data = None,
    site: SiteFile = None,
    job: Annotated[
        Path | None,
        typer.Option(help="A job file to check data, limits and memory against.", show_default="defaults"),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Check kit, connection, data, device, disk and versions; all problems at once, each with its remedy.

    Works before the server is up, and says what could not be checked then. Exit code 0: nothing speaks against
    starting. 1: something does.
    """
    from fl_app.config_file import load_job
    from fl_app.data.findings import format_findings
    from fl_app.deployment.participant import site_settings
    from fl_app.deployment.preflight import check_client

    report = check_client(kit, site_settings(kit, data, site), load_job(job) if job else None)
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


@app.command("settings")
def client_settings(
    file: Annotated[Path | None, typer.Argument(help="A site.yaml.", show_default="the defaults")] = None,
) -> None:
    """Print every key of a site.yaml with its value, default, unit and meaning; none of them leaves the site."""
    from fl_app.site import SiteSettings, read_site

    defaults = SiteSettings(data=Path("FOLDER"))
    print_settings(str(file) if file else "Defaults", read_site(file) if file else defaults, defaults)
