"""TensorBoard events of a run, written as the run goes on."""

from __future__ import annotations

from pathlib import Path

from tensorboard.summary import Writer

from fl_app.result import Result


class Curves:
    """Writes loss, Dice and seconds by round, for each site and for all.

    Args:
        folder: TensorBoard's log folder.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._writer: Writer | None = None  # a run that never starts leaves no folder
        self._written = 0

    def update(self, result: Result) -> None:
        """Write the rounds that are complete and not yet written."""
        while self._written < len(result.rounds) and result.rounds[self._written].dice is not None:
            done = result.rounds[self._written]
            self._add("dice/mean", done.dice, done.number)
            self._add("seconds/round", done.seconds, done.number)
            for name, site in done.sites.items():
                self._add(f"dice/{name}", site.dice, done.number)
                self._add(f"loss/{name}", site.loss, done.number)
                self._add(f"seconds/training {name}", site.training_seconds, done.number)
            self._written += 1
        if self._writer:
            self._writer.flush()

    def close(self) -> None:
        """Finish the file."""
        if self._writer:
            self._writer.close()

    def _add(self, name: str, value: float | None, step: int) -> None:
        if value is None:
            return
        if self._writer is None:
            self._writer = Writer(str(self._folder))
        self._writer.add_scalar(name, value, step)
