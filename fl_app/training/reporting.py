"""From the scores of single cases, which stay at the site, to the means that may leave it."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Sequence
from pathlib import Path

from fl_app.config_file import reported_metrics
from fl_app.messages import Spread, TestReport, TrainReport, Validation
from fl_app.training.metrics import CaseScore, Summary
from fl_app.training.trainer import Steps


def train_report(
    number: int,
    done: Steps,
    training_cases: int,
    memory_bytes: int,
    received: Validation | None = None,
    touched: dict[str, int] | None = None,
) -> TrainReport:
    """One round of local training.

    Args:
        number: of the round.
        done: what the training came to.
        training_cases: how many cases the site trains on.
        memory_bytes: the most that the process has held, as `fl_app.training.device.peak_memory` has it.
        received: scores of the model that the round began with; none for a supernet.
        touched: in how many steps each value was trained, if not all were.
    """
    return TrainReport(
        round=number,
        loss=None if math.isnan(done.loss) else done.loss,
        steps=done.steps,
        training_cases=training_cases,
        training_seconds=done.seconds,
        memory_bytes=memory_bytes,
        received=received,
        touched=touched,
    )


def validation_report(scores: Sequence[CaseScore], organs: Sequence[str], seconds: float) -> Validation:
    """Validation metrics by name: the mean over organs, and each organ's."""
    by_organ = [_spread(score.dice[organ] for score in scores).mean for organ in organs]
    known = [value for value in by_organ if value is not None]
    values = [math.fsum(known) / len(known) if known else None, *by_organ]
    return Validation(
        cases=len(scores), metrics=dict(zip(reported_metrics(organs), values, strict=True)), seconds=seconds
    )


def test_report(scores: Sequence[CaseScore], organs: Sequence[str], seconds: float) -> TestReport:
    """Mean and spread of each organ's test scores."""
    return TestReport(
        dice={organ: _spread(score.dice[organ] for score in scores) for organ in organs},
        surface_dice={organ: _spread((score.surface_dice or {})[organ] for score in scores) for organ in organs},
        seconds=seconds,
    )


def case_file(folder: Path, model: str) -> Path:
    """Where in a site's output folder the scores of a model are written case by case."""
    return folder / f"test_cases_{model.replace(' ', '_')}.csv"


def write_case_scores(path: Path, scores: Sequence[CaseScore]) -> None:
    """A table with a line for each case and organ, for the site's own eyes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as stream:
        table = csv.writer(stream)
        table.writerow(["case", "organ", "dice", "surface_dice"])
        for score in scores:
            for organ, value in score.dice.items():
                table.writerow([score.case, organ, f"{value:.6f}", f"{(score.surface_dice or {})[organ]:.6f}"])


def _spread(values: Iterable[float]) -> Spread:
    summary = Summary.of(values)
    known = summary.count > 0
    return Spread(mean=summary.mean if known else None, std=summary.std if known else None, cases=summary.count)
