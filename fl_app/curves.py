"""TensorBoard events of a run, written as the run goes on, from what its result holds and from nothing else."""

from __future__ import annotations

from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING

from fl_app.result import Result, Round

if TYPE_CHECKING:
    from tensorboard.summary import Writer

CURVES = "tensorboard"  # the folder, beside result.json


class Curves:
    """Writes loss, Dice and seconds by round, for each site and for all; a search's rounds have names of their own.

    Args:
        folder: TensorBoard's log folder.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._writer: Writer | None = None  # a run that never starts leaves no folder
        self._written: dict[str, int] = {}

    def skip(self, result: Result) -> None:
        """These rounds are in an earlier file of the folder, before the server was started again."""
        self._written = {phase: len(rounds) for phase, rounds in _complete(result).items()}

    def update(self, result: Result) -> None:
        """Write the rounds that are complete and not yet written."""
        for phase, rounds in _complete(result).items():
            for done in rounds[self._written.get(phase, 0) :]:
                self._add_round(phase, done)
            self._written[phase] = len(rounds)
        if self._writer:
            self._writer.flush()

    def close(self) -> None:
        """Finish the file."""
        if self._writer:
            self._writer.close()
            self._writer = None

    def _add_round(self, phase: str, done: Round) -> None:
        self._add(f"{phase}dice/mean", done.dice, done.number)
        self._add(f"{phase}seconds/round", done.seconds, done.number)
        for name, site in done.sites.items():
            self._add(f"{phase}dice/{name}", site.dice, done.number)
            self._add(f"{phase}loss/{name}", site.loss, done.number)
            self._add(f"{phase}seconds/training {name}", site.training_seconds, done.number)

    def _add(self, name: str, value: float | None, step: int) -> None:
        if value is None:
            return
        if self._writer is None:
            from tensorboard.summary import Writer  # takes a while: who submits a job writes no curve

            self._writer = Writer(str(self._folder))
        self._writer.add_scalar(name, value, step)


def _complete(result: Result) -> dict[str, list[Round]]:
    """The rounds that are over, up to the first that is not; nobody validates a supernet."""
    found = {"": list(takewhile(_is_validated, result.rounds))}
    if result.search:
        found["supernet "] = list(takewhile(lambda done: done.seconds > 0, result.search.supernet_rounds))
        found["searched "] = list(takewhile(_is_validated, result.search.rounds))
    return found


def _is_validated(done: Round) -> bool:
    return done.dice is not None
