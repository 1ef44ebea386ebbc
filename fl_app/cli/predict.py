"""`fedspleen predict`: a trained model on new scans."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from fl_app.cli.console import open_console
from fl_app.errors import DataError, UsageError

if TYPE_CHECKING:
    from fl_app.prediction.inputs import Input
    from fl_app.prediction.predictor import Predictor
    from fl_app.prediction.session import Outcome, Outputs
    from fl_app.prediction.stages import Advance


def predict(
    model: Annotated[Path, typer.Argument(help="A model file, such as model/best.safetensors.", show_default=False)],
    inputs: Annotated[
        list[Path],
        typer.Argument(
            metavar="INPUT...", help="NIfTI files, folders of them, .zarr arrays, folders of a DICOM series each."
        ),
    ],
    out: Annotated[Path, typer.Option(help="The folder for the label maps.", show_default=False)],
    probabilities: Annotated[bool, typer.Option("--probabilities", help="Also write each organ's.")] = False,
    flips: Annotated[
        bool, typer.Option("--flips", help="Average over mirrored scans, where training mirrored too.")
    ] = False,
    largest_component: Annotated[
        bool, typer.Option("--largest-component", help="Keep the largest connected part of each organ.")
    ] = False,
    evaluate: Annotated[
        Path | None, typer.Option(help="True label maps: a folder, or a file for one scan.", show_default=False)
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace label maps that exist.")] = False,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    workers: Annotated[int, typer.Option(min=0, help="Processes on this machine that share the tiles.")] = 0,
    slurm: Annotated[
        Path | None, typer.Option(help="Settings of Slurm jobs that share the tiles (YAML).", show_default=False)
    ] = None,
) -> None:
    """Segment new scans: NAME_label.nii.gz on the scan's own grid, or NAME_seg.dcm for DICOM; organ volumes in mL."""
    from fl_app.prediction.inputs import find_inputs
    from fl_app.prediction.predictor import Predictor
    from fl_app.prediction.scores import find_labels
    from fl_app.prediction.session import SCORES, VOLUMES, plan_outputs
    from fl_app.training.device import choose_device

    if workers and slurm:
        raise UsageError("--workers and --slurm: choose one of them")
    with ExitStack() as stack:
        spread = None
        if workers or slurm:
            from fl_app.prediction.slurm import slurm_workers
            from fl_app.prediction.workers import local_workers

            where = (model, device, flips)
            manager = slurm_workers(slurm, out / "slurm_logs", *where) if slurm else local_workers(workers, *where)
            spread = stack.enter_context(manager)
        predictor = Predictor(model, choose_device(device), flips, largest_component, spread)
        scans = find_inputs(inputs)
        truths = find_labels(scans, evaluate) if evaluate else {}
        planned = plan_outputs(scans, predictor.organs, out, probabilities, overwrite)
        outcomes, failures = _predict_each(predictor, scans, planned, truths)
    if outcomes:
        tables = out / VOLUMES
        if evaluate:
            open_console().print(_table(outcomes))
            tables = Path(f"{tables}, {out / SCORES}")
        open_console().print(f"written: {tables}", soft_wrap=True)
    if failures:
        summary = f"{len(failures)} of {len(scans)} scans failed:\n" if len(scans) > 1 else ""
        raise DataError(summary + "\n".join(failures))


def _predict_each(
    predictor: Predictor, scans: Sequence[Input], planned: Mapping[str, Outputs], truths: Mapping[str, Path]
) -> tuple[list[Outcome], list[str]]:
    """What came of the scans, and why others failed."""
    from fl_app.prediction.session import predict_input

    console = open_console()
    outcomes, failures = [], []
    for scan in scans:
        try:
            with _progress(console, scan.name) as advance:
                outcome = predict_input(predictor, scan, planned[scan.name], truths.get(scan.name), advance)
        except DataError as error:
            failures.append(str(error))
            continue
        found = ", ".join(f"{organ} {volume:.1f} mL" for organ, volume in outcome.volumes_ml.items())
        console.print(f"{scan.name}: {found}; {outcome.seconds:.1f} s; {outcome.labels}", soft_wrap=True)
        for warning in outcome.warnings:
            console.print(f"{scan.name}: caution: {warning}", style="bold yellow", soft_wrap=True)
        outcomes.append(outcome)
    return outcomes, failures


@contextmanager
def _progress(console: Console, name: str) -> Iterator[Advance]:
    """A bar in a terminal, nothing elsewhere: there each scan ends with its line."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:.0f} %"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(name, total=1.0)
        yield lambda share: progress.update(task, completed=share)


def _table(outcomes: list[Outcome]) -> Table:
    table = Table(title="Against the true label maps", title_justify="left")
    for heading in ("scan", "organ", "Dice", "surface Dice", "HD95 mm"):
        table.add_column(heading, justify="left" if heading in ("scan", "organ") else "right")
    for outcome in outcomes:
        for organ, values in outcome.scores.items():
            cells = (f"{values.dice:.3f}", f"{values.surface_dice:.3f}", f"{values.hausdorff95_mm:.1f}")
            table.add_row(outcome.name, organ, *("-" if cell == f"{math.nan}" else cell for cell in cells))
    return table
