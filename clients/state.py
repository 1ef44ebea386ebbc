"""What a site keeps between rounds beside the shared model: optimiser, random streams' places, layers that stay."""

from __future__ import annotations

import logging
from io import BytesIO
from pathlib import Path
from typing import Any

import torch

from fl_app.files import replacing
from fl_app.training.trainer import Trainer

Values = dict[str, torch.Tensor]
_logger = logging.getLogger(__name__)


class SiteState:
    """Local values after the rounds that may still be asked for, and on disk what a restart needs.

    The server may go on after its last round or the one before, so the states after two rounds are on disk.

    Args:
        folder: for the files; none: nothing is written.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._local: dict[int, Values] = {}

    def local_values(self, number: int) -> Values:
        """Values that stay at the site, as they were after a round, or the last one before that had this site in it."""
        return self._local[max(each for each in self._local if each <= number)]

    def keep(self, trainer: Trainer, number: int, best: int) -> None:
        """Remember the state after round ``number``; of earlier rounds only the best one's and the last one's."""
        wanted = {best, number - 1}
        self._local = {each: values for each, values in self._local.items() if each in wanted}
        self._local[number] = trainer.local_values()
        if self._folder is None:
            return
        content = BytesIO()
        torch.save({"local": self._local, "optimizer": trainer.optimizer_state()}, content)
        with replacing(self._path(number)) as temporary:
            temporary.write_bytes(content.getbuffer())
        for old in self._folder.glob("round-*.pt"):
            if old not in (self._path(number), self._path(number - 1)):
                old.unlink()

    def restore(self, trainer: Trainer, number: int) -> bool | None:
        """Put the trainer where it was after round ``number``; whether it could be done, none if it need not."""
        self._local = {0: trainer.local_values()}
        if number == 0:
            return None
        path = self._path(number) if self._folder else None
        try:
            if path is None:
                return False
            state: dict[str, Any] = torch.load(path, weights_only=True, map_location="cpu")
            self._local = state["local"]
            trainer.load(self._local[number])
            trainer.restore_optimizer(state["optimizer"])
        except (OSError, RuntimeError, KeyError, ValueError, EOFError) as error:
            _logger.warning(f"the state after round {number} cannot be restored; training goes on without: {error}")
            # the best round's layers are lost with it: those of today stand in for them
            self._local = {number: trainer.local_values()}
            return False
        return True

    def _path(self, number: int) -> Path:
        assert self._folder is not None
        return self._folder / f"round-{number:06d}.pt"
