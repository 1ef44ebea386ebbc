"""`fedspleen report`: a page to look at."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def report(
    folder: Annotated[Path, typer.Argument(help="A result folder, or with --site a site's.", show_default=False)],
    out: Annotated[
        Path | None, typer.Option(help="Where to write the page.", show_default="report.html in FOLDER")
    ] = None,
    site: Annotated[
        bool, typer.Option("--site", help="FOLDER is a site's output folder: show its own cases. Keep that page there.")
    ] = False,
) -> None:
    """Make one HTML page of a run, finished or not: it opens offline in any browser.

    Every run makes it at its end, and this makes it again.
    """
    from fl_app.reports.page import write_report
    from fl_app.reports.site_page import write_site_report

    print(write_site_report(folder, out) if site else write_report(folder, out))
