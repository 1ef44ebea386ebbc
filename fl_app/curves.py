"""A run's curves, drawn as the run goes on, from what its result holds and from nothing else."""

from __future__ import annotations

from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from fl_app.result import Result, Round

if TYPE_CHECKING:
    from tensorboard.summary import Writer

CURVES = "tensorboard"  # the folder, beside result.json


class Paper(Protocol):
    """Where curves are drawn."""

    def add(self, name: str, value: float, step: int) -> None:
        """Add a point to a curve."""

    def flush(self) -> None:
        """Make sure that others see what was added."""

    def close(self) -> None:
        """Finish."""


class TensorBoard:
    """TensorBoard's events.

    Args:
        folder: its log folder; a run that never starts leaves none.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._writer: Writer | None = None

    def add(self, name: str, value: float, step: int) -> None:
        """Add a point to a curve."""
        if self._writer is None:
            from tensorboard.summary import Writer  # takes a while: who submits a job writes no curve

            self._writer = Writer(str(self._folder))
        self._writer.add_scalar(name, value, step)

    def flush(self) -> None:
        """Make sure that others see what was added."""
        if self._writer:
            self._writer.flush()

    def close(self) -> None:
        """Finish the file."""
        if self._writer:
            self._writer.close()
            self._writer = None


class Curves:
    """Draws loss, Dice and seconds by round, for each site and for all; a search's rounds have names of their own.

    Args:
        paper: where.
    """

    def __init__(self, paper: Paper) -> None:
        self._paper = paper
        self._written: dict[str, int] = {}

    def skip(self, result: Result) -> None:
        """These rounds are in an earlier file of the folder, before the server was started again."""
        self._written = {phase: len(rounds) for phase, rounds in _complete(result).items()}

    def update(self, result: Result) -> None:
        """Draw the rounds that are complete and not yet drawn."""
        for phase, rounds in _complete(result).items():
            for done in rounds[self._written.get(phase, 0) :]:
                self._add_round(phase, done)
            self._written[phase] = len(rounds)
        self._paper.flush()

    def close(self) -> None:
        """Finish."""
        self._paper.close()

    def _add_round(self, phase: str, done: Round) -> None:
        self._add(f"{phase}dice/mean", done.dice, done.number)
        self._add(f"{phase}seconds/round", done.seconds, done.number)
        for name, site in done.sites.items():
            self._add(f"{phase}dice/{name}", site.dice, done.number)
            self._add(f"{phase}loss/{name}", site.loss, done.number)
            self._add(f"{phase}seconds/training {name}", site.training_seconds, done.number)

    def _add(self, name: str, value: float | None, step: int) -> None:
        if value is not None:
            self._paper.add(name, value, step)


def _complete(result: Result) -> dict[str, list[Round]]:
    """The rounds that are over, up to the first that is not; nobody validates a supernet."""
    found = {"": list(takewhile(_is_validated, result.rounds))}
    if result.search:
        found["supernet "] = list(takewhile(lambda done: done.seconds > 0, result.search.supernet_rounds))
        found["searched "] = list(takewhile(_is_validated, result.search.rounds))
    return found


def _is_validated(done: Round) -> bool:
    return done.dice is not None
