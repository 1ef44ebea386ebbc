"""`fedspleen join`: a network for a site that comes when an architecture search is over."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from fl_app.cli.console import open_console
from fl_app.errors import UsageError


def join(
    result: Annotated[Path, typer.Argument(help="Folder of a finished job with a search.", show_default=False)],
    data: Annotated[Path, typer.Option(help="Folder with the site's images and labels.", show_default=False)],
    out: Annotated[Path, typer.Option(help="A new folder, for the model and its scores.", show_default=False)],
    memory_budget_gib: Annotated[
        float | None, typer.Option(min=0, help="Memory that training may take; none: what is free.")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    name: Annotated[str, typer.Option(help="The site's name; it names its random stream.")] = "new-site",
) -> None:
    """Give a site that was not in the search the best network for its memory, tuned on its own cases."""
    if out.exists() and any(out.iterdir()):
        raise UsageError(f"{out}: there is something in it - name a new folder")
    from clients.joining import join as join_search
    from fl_app.site import SiteSettings

    settings = SiteSettings(data=data, output=out, memory_budget_gib=memory_budget_gib, device=device)
    report = join_search(result / "model", name, settings)
    table = Table(title="The models that this site could keep; its own cases", title_justify="left")
    for heading in ("model", "validation Dice", "test Dice", "parameters", "training memory\nMiB"):
        table.add_column(heading, justify="left" if heading == "model" else "right")
    for label, model in report.models.items():
        validated = model.validation.metrics.get("val_dice")
        tested = [spread.mean for spread in model.test.dice.values() if spread.mean is not None]
        table.add_row(
            f"{label} (kept)" if label == report.chosen else label,
            "-" if validated is None else f"{validated:.3f}",
            f"{sum(tested) / len(tested):.3f}" if tested else "-",
            f"{model.parameters:,}",
            f"{model.memory_bytes / 2**20:.1f}",
        )
    open_console().print(table)
    print(f"model: {out / 'model.safetensors'}")
