"""`fedspleen import-dicom`: DICOM series with segmentations as training data."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fl_app.cli.console import open_console
from fl_app.config import Job
from fl_app.config_file import load_job
from fl_app.errors import DataError, UsageError


def import_dicom(
    source: Annotated[
        Path, typer.Argument(help="A folder; all DICOM files below it are looked at.", show_default=False)
    ],
    out: Annotated[Path, typer.Option(help="The folder for images/ and labels/.", show_default=False)],
    labels: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=VALUE,...", help="Names in the segmentations, and values for them.", show_default="spleen=1"
        ),
    ] = None,
    config: Annotated[Path | None, typer.Option(help="A job file, whose labels are taken.", show_default=False)] = None,
) -> None:
    """Convert CT series that have a SEG or RTSTRUCT to NIfTI images and labels, without anything about the patient."""
    from fl_app.data.dicom.conversion import REGISTER, import_tree

    if labels and config:
        raise UsageError("--labels and --config: give one of the two")
    wanted = _parse(labels) if labels else (load_job(config) if config else Job()).data.labels
    console = open_console()
    report = import_tree(source, out, wanted, lambda line: console.print(line, soft_wrap=True, markup=False))
    for heading, entries in (("skipped", report.skipped), ("refused", report.refused)):
        for place, reason in entries.items():
            console.print(f"{heading}: {place}: {reason}", soft_wrap=True, markup=False)
    for caution in report.cautions:
        console.print(f"caution: {caution}", style="bold yellow", soft_wrap=True)
    counts = f"{len(report.converted)} converted, {len(report.known)} converted before, {len(report.skipped)} skipped"
    console.print(f"{counts}, {len(report.refused)} refused")
    if not report.converted and not report.known:
        raise DataError(f"{source} holds no CT series with a usable segmentation")
    console.print(
        f"{out} can be trained on; {REGISTER} in it tells whose case is whose and must stay here", soft_wrap=True
    )


def _parse(texts: list[str]) -> dict[str, int]:
    """``spleen=1,liver=2`` as a mapping."""
    found: dict[str, int] = {}
    for pair in ",".join(texts).split(","):
        name, _, value = pair.rpartition("=")
        if not name.strip() or not value.strip().isdecimal() or not 1 <= int(value) <= 65535:
            raise UsageError(f"--labels {pair!r}: NAME=VALUE such as spleen=1, with values from 1 to 65535")
        found[name.strip()] = int(value)
    return found
