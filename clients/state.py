"""What a site keeps between rounds beside the shared model: optimiser, random streams' places, layers that stay."""

from __future__ import annotations

import logging
import shutil
import time
from io import BytesIO
from pathlib import Path
from typing import Any

import torch

from fl_app.files import replacing
from fl_app.training.trainer import Trainer
from fl_app.transfer import Rounding

_KEPT = 2
_OLD_SECONDS = 30 * 24 * 3600
Values = dict[str, torch.Tensor]
_logger = logging.getLogger(__name__)


def forget_old(folder: Path) -> None:
    """Remove the states of jobs that have not been touched for 30 days: they were aborted, or never came back."""
    for old in folder.iterdir() if folder.is_dir() else []:
        if time.time() - old.stat().st_mtime > _OLD_SECONDS:
            shutil.rmtree(old, ignore_errors=True)


class SiteState:
    """Local values after the rounds that may still be asked for, and on disk what a restart needs.

    The server may go on after its last round or the one before, so the states after two rounds are on disk: of the last
    ones that had this site in them.

    Args:
        folder: for the files; none: nothing is written.
        rounding: of the site's updates; what it has rounded off is part of the state. None: nothing is rounded.
    """

    def __init__(self, folder: Path | None, rounding: Rounding | None = None) -> None:
        self._folder = folder
        self._rounding = rounding
        self._local: dict[int, Values] = {}

    def local_values(self, number: int) -> Values:
        """Values that stay at the site, as they were after a round, or the last one before that had this site in it."""
        return self._local[max(each for each in self._local if each <= number)]

    def keep(self, trainer: Trainer, number: int, best: int) -> None:
        """Remember the state after round ``number``; of earlier rounds only the best one's and the last one's."""
        wanted = {max((each for each in self._local if each <= one), default=0) for one in (best, number - 1)}
        self._local = {each: values for each, values in self._local.items() if each in wanted}
        self._local[number] = trainer.local_values()
        if self._folder is None:
            return
        content = BytesIO()
        rest = self._rounding.rest if self._rounding else {}
        torch.save({"local": self._local, "optimizer": trainer.optimizer_state(), "rest": rest}, content)
        with replacing(self._path(number)) as temporary:
            temporary.write_bytes(content.getbuffer())
        for old in self._kept(number)[:-_KEPT]:
            old.unlink()
        for later in set(self._kept(10**9)) - set(self._kept(number)):
            later.unlink()  # of rounds that the server has lost

    def restore(self, trainer: Trainer, number: int) -> bool | None:
        """Put the trainer where it was after round ``number``; whether it could be done, none if it need not."""
        self._local = {0: trainer.local_values()}
        if number == 0:
            return None
        kept = self._kept(number)
        try:
            if not kept:
                return False
            path = kept[-1]
            state: dict[str, Any] = torch.load(path, weights_only=True, map_location="cpu")
            self._local = state["local"]
            trainer.load(self.local_values(number))
            trainer.restore_optimizer(state["optimizer"])
            if self._rounding:
                self._rounding.rest = state["rest"]
        except (OSError, RuntimeError, KeyError, ValueError, EOFError) as error:
            _logger.warning(f"the state after round {number} cannot be restored; training goes on without: {error}")
            # the best round's layers are lost with it: those of today stand in for them
            self._local = {number: trainer.local_values()}
            return False
        return True

    def _kept(self, number: int) -> list[Path]:
        """Files of states that are not after a later round than this one; the latest is the last."""
        found = self._folder.glob("round-*.pt") if self._folder else []
        return sorted(path for path in found if path.name <= self._path(number).name)

    def _path(self, number: int) -> Path:
        assert self._folder is not None
        return self._folder / f"round-{number:06d}.pt"
