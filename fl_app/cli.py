"""The command line. Every error of the user ends as one sentence and a non-zero exit code."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import closing
from datetime import datetime
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from fl_app.config import Job
from fl_app.config_file import Key, load_job, settings_table
from fl_app.errors import UserError

app = typer.Typer(
    add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False, help="Federated 3D segmentation."
)
config = typer.Typer(no_args_is_help=True, help="Job files.")
app.add_typer(config, name="config")

_PHANTOM_JOB = Path(__file__).with_name("jobs") / "phantom.yaml"


def main() -> None:
    """Run a command; exit with 0, 1 (failed work), 2 (wrong use) or 128 + signal (ended)."""
    from fl_app.processes import Interrupted, raise_on_signals

    raise_on_signals()
    try:
        app()
    except UserError as error:
        print(f"fedspleen: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except Interrupted as end:
        print(f"fedspleen: ended by {end}", file=sys.stderr)
        sys.exit(end.exit_code)


@app.command()
def version() -> None:
    """Print the version."""
    print(metadata.version("fedspleen"))


@app.command()
def simulate(
    sites: Annotated[int | None, typer.Option(min=1, max=100, help="How many sites.", show_default="3")] = None,
    rounds: Annotated[int | None, typer.Option(min=1, help="How many rounds; the job file says it otherwise.")] = None,
    data: Annotated[
        Path | None, typer.Option(help="A data set, or a folder with one for each site.", show_default="a phantom cohort")
    ] = None,
    config: Annotated[
        Path | None, typer.Option(help="A job file.", show_default="one that suits the phantom cohort")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="A new folder for the result.", show_default="results/NAME-DATE-TIME")
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Of everything random.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    split: Annotated[
        str, typer.Option(help="How one data set is divided: iid, by-size, dirichlet:ALPHA or same (all to each).")
    ] = "iid",
    compare: Annotated[bool, typer.Option("--compare", help="Also train locally and centralised.")] = False,
) -> None:
    """Run a whole federation on this machine, each site in a process of its own."""
    from fl_app.data.findings import format_findings
    from fl_app.reports.curves import Curves
    from fl_app.reports.progress import Progress
    from fl_app.reports.tables import comparison_table, test_table
    from fl_app.simulation import Events, Simulation, run_simulation

    overrides: dict[Key, Any] = {}
    if rounds is not None:
        overrides["federation", "rounds"] = rounds
    if seed is not None:
        overrides["seed",] = seed
    job = load_job(config or _PHANTOM_JOB, overrides)
    out = out or Path("results") / f"{job.name}-{datetime.now():%Y%m%d-%H%M%S}"
    simulation = Simulation(job, out, data, sites, split, device)
    console = _console()
    console.print(f"fedspleen {metadata.version('fedspleen')}: {job.name}, {job.federation.rounds} rounds")
    console.print(f"result folder: {out}")
    progress = Progress(console, sites or 3)
    try:
        with closing(Curves(out / "tensorboard")) as curves, progress:
            events = Events(
                say=console.print,
                warn=lambda site, findings: console.print(f"{site}: {format_findings(findings)}"),
                progress=_both(progress.update, curves.update),
                baseline=lambda name: console.print(f"baseline {name} trained"),
            )
            result = run_simulation(simulation, events, compare)
    except BaseException:
        if out.exists():
            print(f"what was reached so far is in {out}", file=sys.stderr)
        raise
    console.print(test_table(result))
    if compare:
        console.print(comparison_table(result))
    console.print(f"{result.seconds:.0f} s; result, model, logs and TensorBoard events are in {out}")


@config.command("show")
def config_show(file: Annotated[Path | None, typer.Argument(help="A job file; none: the defaults.")] = None) -> None:
    """Print every setting with its value, default, unit and meaning."""
    job = load_job(file) if file else Job()
    table = Table(title=str(file) if file else "Defaults", title_justify="left", show_lines=True)
    for heading in ("setting", "value", "default", "meaning"):
        table.add_column(heading, overflow="fold")
    for key, value, default, meaning in settings_table(job):
        table.add_row(key, value, "" if value == default else default, meaning)
    _console().print(table)


@config.command("check")
def config_check(file: Annotated[Path, typer.Argument(help="A job file.")]) -> None:
    """Say whether a job file is right; exit with 2 and all its mistakes if not."""
    load_job(file)
    print(f"{file}: right")


def _both(first: Callable[[Any], None], second: Callable[[Any], None]) -> Callable[[Any], None]:
    def call(value: Any) -> None:
        first(value)
        second(value)

    return call


def _console() -> Console:
    """Plain text outside a terminal, wide enough for the tables."""
    console = Console(highlight=False, soft_wrap=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=160)
    return console


if __name__ == "__main__":
    main()
