"""`fedspleen simulate`: a whole federation on this machine."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from fl_app.cli.console import open_console
from fl_app.cli.ending import print_end, result_folder
from fl_app.config_file import Key, load_job
from fl_app.errors import UsageError
from fl_app.versions import own_version

_QUICK_JOB = Path(__file__).parents[1] / "jobs" / "quick.yaml"


def simulate(
    sites: Annotated[int | None, typer.Option(min=1, max=100, help="How many sites.", show_default="3")] = None,
    rounds: Annotated[int | None, typer.Option(min=1, help="How many rounds, in place of the job file's.")] = None,
    data: Annotated[
        Path | None, typer.Option(help="A data set, or a folder with one a site.", show_default="a phantom cohort")
    ] = None,
    config: Annotated[Path | None, typer.Option(help="A job file.", show_default="fl_app/jobs/quick.yaml")] = None,
    out: Annotated[
        Path | None, typer.Option(help="A new folder for the result.", show_default="results/NAME-DATE-TIME")
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Of everything random.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    memory_budget_gib: Annotated[
        list[float] | None,
        typer.Option(
            min=0.0001,
            help="Memory that training may use, in GiB: once for all sites, or once for each in their order.",
            show_default="what is free",
        ),
    ] = None,
    split: Annotated[
        str, typer.Option(help="How one data set is divided: iid, by-size, dirichlet:ALPHA or same (all to each).")
    ] = "iid",
    one_process: Annotated[
        bool,
        typer.Option(
            "--one-process",
            help="Sites take turns in one process, without FLARE; also done where the memory holds no process each.",
        ),
    ] = False,
    compare: Annotated[bool, typer.Option("--compare", help="Also train locally and centralised.")] = False,
    resume: Annotated[
        Path | None, typer.Option(help="Go on with a run that ended early: its folder.", show_default=False)
    ] = None,
) -> None:
    """Run a whole federation on this machine, each site in a process of its own."""
    from fl_app.data.findings import format_findings
    from fl_app.reports.progress import Progress
    from fl_app.simulation import Events, Simulation, resume_simulation, run_simulation

    overrides: dict[Key, Any] = {}
    if rounds is not None:
        overrides["federation", "rounds"] = rounds
    if seed is not None:
        overrides["seed",] = seed
    if resume:
        if overrides or sites or data or config or out or memory_budget_gib:
            raise UsageError("--resume goes on with that run's own settings - leave the other options out")
        config, out = resume / "job.yaml", resume
    job = load_job(config or _QUICK_JOB, overrides)
    out = result_folder(job, out)
    simulation = Simulation(job, out, data, sites, split, device, tuple(memory_budget_gib or ()), one_process)
    console = open_console()
    console.print(f"fedspleen {own_version()}: {job.name}, {job.federation.rounds or job.search.rounds} rounds")
    console.print(f"result folder: {out}")
    progress = Progress(console)
    try:
        with progress:
            events = Events(
                say=console.print,
                warn=lambda site, findings: console.print(f"{site}: {format_findings(findings)}"),
                progress=progress.update,
                baseline=lambda name: console.print(f"baseline {name} trained"),
            )
            if resume:
                result = resume_simulation(out, events, compare, one_process)
            else:
                result = run_simulation(simulation, events, compare)
    except BaseException:
        if (out / "result.json").exists():
            from fl_app.reports.page import write_report  # imports torch: seconds that a run need not wait for

            write_report(out)
        if (out / "logs").exists():
            print(f"what was reached so far is in {out}", file=sys.stderr)
        raise
    print_end(console, result, out, compare)
