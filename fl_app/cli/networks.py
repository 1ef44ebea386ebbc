"""`fedspleen networks`: what each network costs."""

from __future__ import annotations

import json
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from typing import Annotated, Any

import typer
from rich.table import Table

from fl_app.cli.console import open_console
from fl_app.config import DataSettings, Job, NetworkSettings, network_sizes
from fl_app.config_file import parse_job
from fl_app.errors import UsageError

Row = dict[str, Any]


def networks(
    names: Annotated[list[str] | None, typer.Argument(help="Which networks; none: all.", show_default=False)] = None,
    patch: Annotated[tuple[int, int, int], typer.Option(metavar="X Y Z", help="Patch in voxels.")] = (64, 64, 64),
    spacing: Annotated[
        tuple[float, float, float], typer.Option(metavar="X Y Z", help="Voxel size in mm; dynunet is planned from it.")
    ] = DataSettings().spacing_mm,
    batch: Annotated[int, typer.Option(min=1, help="Patches in a step.")] = 1,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    precision: Annotated[str, typer.Option(help="auto, bf16, fp16 or fp32.")] = "auto",
    measure: Annotated[bool, typer.Option("--measure", help="Also take steps: their time and real memory.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, with bytes and seconds.")] = False,
) -> None:
    """Print each network's parameters, operations and training memory at a patch, in every size it comes in."""
    known = network_sizes()
    unknown = [name for name in names or [] if name not in known]
    if unknown:
        raise UsageError(f"networks: {unknown[0]!r} - one of {', '.join(known)}")
    training: dict[tuple[str | int, ...], object] = {
        ("training", "precision"): precision,
        ("training", "batch_size"): batch,
    }
    settings = parse_job("", "networks", training).training
    rows = []
    for name in names or known:
        for size in known[name]:
            network = NetworkSettings.model_validate({"name": name, "size": size})
            problem = network.patch_problem(patch, spacing)
            row: Row = {"name": name, "size": size or _channels(network)}
            if problem:
                rows.append(row | {"problem": problem})
                continue
            data = {"patch_voxels": patch, "spacing_mm": spacing}
            job = Job.model_validate({"network": network, "data": data, "training": settings})
            rows.append(row | _cost(job, device) | (_measured(job, device) if measure else {}))
    if all("problem" in row for row in rows):
        raise UsageError(f"networks: --patch {' '.join(map(str, patch))} - {rows[0]['problem']}")
    if as_json:
        print(
            json.dumps({"patch_voxels": patch, "spacing_mm": spacing, "batch_size": batch, "networks": rows}, indent=1)
        )
        return
    console = open_console()
    console.print(_table(rows, f"Patch {' x '.join(map(str, patch))}, batch {batch}", measure))
    for row in rows:
        if "problem" in row:
            console.print(f"{row['name']} {row['size']}: {row['problem']}")


def _cost(job: Job, wanted: str) -> Row:
    from fl_app.training.cost import forward_flops, training_memory
    from fl_app.training.trainer import ready_network

    device, precision = _place(job, wanted)
    network = ready_network(job, device)
    memory = training_memory(network, job.data.patch_voxels, job.training.batch_size, device, precision, job.training)
    return {
        "device": device.type,
        "precision": precision,
        "parameters": sum(each.numel() for each in network.parameters()),
        "flops": forward_flops(network, job.data.patch_voxels, job.training.batch_size),
        "parameter_bytes": memory.parameters,
        "gradient_bytes": memory.gradients,
        "optimizer_bytes": memory.optimizer,
        "activation_bytes": memory.activations,
        "peak_bytes": memory.peak,
    }


def _measured(job: Job, wanted: str) -> Row:
    """In a process of its own, whose memory holds nothing else."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        return process.submit(_measure_here, job, wanted).result()


def _measure_here(job: Job, wanted: str) -> Row:
    from fl_app.training.cost import measure_steps
    from fl_app.training.trainer import ready_network

    device, precision = _place(job, wanted)
    network = ready_network(job, device)
    measured = measure_steps(network, job.data.patch_voxels, job.training.batch_size, device, precision, job.training)
    return {"step_seconds": measured.seconds, "measured_bytes": measured.peak}


def _place(job: Job, wanted: str) -> tuple[Any, Any]:
    from fl_app.training.device import choose_device
    from fl_app.training.precision import choose_precision

    device = choose_device(wanted)
    return device, choose_precision(job.training.precision, device)


def _channels(network: NetworkSettings) -> str:
    channels = network.channels
    if channels is None:
        return "-"
    return str(channels[0]) if network.name == "segresnet" else f"{channels[0]}-{channels[-1]}"


def _table(rows: list[Row], title: str, measure: bool) -> Table:
    done = next(row for row in rows if "problem" not in row) if any("problem" not in row for row in rows) else {}
    table = Table(title=f"{title}, {done.get('precision')} on {done.get('device')}", title_justify="left")
    headings = ["network", "size", "parameters\nmillions", "forward\nGFLOP", "kept for\nbackward\nMB", "peak\nMB"]
    for heading in headings + (["measured\nMB", "step\ns"] if measure else []):
        table.add_column(heading, justify="left" if heading in ("network", "size") else "right")
    for row in rows:
        if "problem" in row:
            table.add_row(row["name"], row["size"], *"-" * (len(table.columns) - 2))
            continue
        figures = [f"{row['parameters'] / 1e6:.1f}", f"{row['flops'] / 1e9:.1f}"]
        figures += [f"{row[key] / 1e6:.0f}" for key in ("activation_bytes", "peak_bytes")]
        if measure:
            figures += [f"{row['measured_bytes'] / 1e6:.0f}", f"{row['step_seconds']:.2f}"]
        table.add_row(row["name"], row["size"], *figures)
    return table
