"""The tables at the end of a run."""

from __future__ import annotations

from rich.table import Table

from fl_app.reports.models import model_rows
from fl_app.result import Result, weighted_mean


def table_of_tests(result: Result) -> Table:
    """Each site's held-out test cases under the final model."""
    final = result.final
    assert final is not None  # a finished run has been tested
    table = Table(title=f"Held-out test cases, model after round {final.round}", title_justify="left")
    for heading in ("site", "cases", "Dice", "spread", "surface Dice"):
        table.add_column(heading, justify="left" if heading == "site" else "right")
    for name, scores in final.sites.items():
        table.add_row(
            name, str(scores.cases), number(scores.dice), number(scores.dice_std), number(scores.surface_dice)
        )
    cases = sum(scores.cases for scores in final.sites.values())
    table.add_section()
    table.add_row("all", str(cases), number(final.mean_dice), "", number(final.mean_surface_dice))
    return table


def table_of_models(result: Result) -> Table:
    """Each site's test cases under each model: one row a model, one column a site."""
    final = result.final
    assert final is not None
    names = list(final.sites)
    table = Table(title="Test Dice: which model, on whose test cases", title_justify="left")
    table.add_column("model")
    table.add_column("steps", justify="right")
    for name in names:
        table.add_column(f"{name}\n{final.sites[name].cases} cases", justify="right")
    table.add_column("all", justify="right")
    for row in model_rows(result):
        mean = weighted_mean((each.dice, each.cases) for each in row.scores.values())
        label = f"  {row.label}" if row.kind.startswith("one") else row.label
        known = (number(row.scores[name].dice if name in row.scores else None) for name in names)
        table.add_row(label, row.steps, *known, number(mean))
    return table


def table_of_personal(result: Result) -> Table:
    """What each site takes home, next to what it could have taken."""
    personal = result.personal
    assert personal is not None
    table = Table(title="Each site keeps the best model by its own validation cases", title_justify="left")
    for heading in ("site", "model", "validation Dice", "test Dice", "parameters", "training MiB", "kept"):
        table.add_column(heading, justify="left" if heading in ("site", "model") else "right")
    for site, kept in personal.sites.items():
        for name, model in kept.models.items():
            chosen = "x" if name == kept.chosen else ""
            memory = f"{model.memory_bytes / 2**20:.1f}"
            scores = number(model.validation_dice), number(model.scores.dice)
            table.add_row(site, name, *scores, f"{model.parameters:,}", memory, chosen)
        table.add_section()
    table.add_row("all", "kept", "", number(personal.mean_dice), "", "", "")
    return table


def number(value: float | None) -> str:
    """A score, or a dash where there is none."""
    return "-" if value is None else f"{value:.3f}"
