"""One network at a site: take what the server sends, train a round, send back what has changed."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from clients.incoming import Incoming
from clients.state import SiteState
from fl_app.config import Job
from fl_app.data.site_data import SiteData
from fl_app.messages import TrainReport, Validation
from fl_app.training.device import peak_memory
from fl_app.training.reporting import train_report, validation_report
from fl_app.training.trainer import Trainer
from fl_app.transfer import Rounding

Values = dict[str, torch.Tensor]
_logger = logging.getLogger(__name__)


class LocalNetwork:
    """Trains a network between exchanges.

    Args:
        job: the job.
        trainer: with the network; what it exchanges is what travels.
        data: the site's cases.
        rounds: of the whole training.
        state: folder for what a restart needs; none: nothing is kept.
        ditto: trains the site's own model beside the federated one (Ditto); none: there is no such model.
    """

    def __init__(
        self,
        job: Job,
        trainer: Trainer,
        data: SiteData,
        rounds: int,
        state: Path | None,
        ditto: Trainer | None = None,
    ) -> None:
        self.trainer = trainer
        self.ditto = ditto
        self._job = job
        self._data = data
        self._rounds = rounds
        bits = job.federation.transfer_bits
        self.incoming = Incoming(bits, trainer.shared_values())
        self._rounding = Rounding(bits) if bits < 32 else None
        self._state = SiteState(state, self._rounding)
        if ditto:
            ditto.rest()
        self._ditto_state = SiteState(state / "ditto" if state else None)
        self._ditto_begun = False
        self._scored: Validation | None = None  # of the network as it stands

    def restore(self, number: int) -> bool | None:
        """Go back to where the site was after a round; whether it could, none if there is nothing to go back to."""
        restored = [self._state.restore(self.trainer, number)]
        if self.ditto:
            restored.append(self._ditto_state.restore(self.ditto, number))
            self._ditto_begun = bool(restored[-1])
        return None if None in restored else all(restored)

    def train(self, values: Values, facts: Mapping[str, Any]) -> tuple[Values, TrainReport]:
        """One round; the differences of the values that travel, as they travel, and a report."""
        number, best, steps = int(facts["round"]), int(facts["best_round"]), self._job.training.steps_per_round
        values = self.incoming.model(values, facts)
        self.load(values)
        received = self.score()
        _logger.info(f"round {number}: received model {received.metrics}, {received.cases} cases")
        if self.ditto and not self._ditto_begun:
            self.ditto.load(self.trainer.all_values())  # it begins where the site does
            self._ditto_begun = True
        trained = self.trainer.train(number, steps, self._rounds)
        if steps:
            self._scored = None
        now = self.trainer.shared_values()
        names = self.trainer.trained_names()
        differences = {name: now[name] - values[name] for name in now if name in names}
        sent = self._rounding.encode(differences) if self._rounding else differences
        self._state.keep(self.trainer, number, best)
        if self.ditto:
            pull = (self._job.personal.ditto, values)
            self.trainer.rest()
            self.ditto.wake()
            self.ditto.train(number, steps, self._rounds, pull)
            self.wake()
            self._ditto_state.keep(self.ditto, number, best)
        _logger.info(f"round {number}: {trained}")
        held = peak_memory(self.trainer.device)
        touched = dict.fromkeys(differences, trained.steps) if len(differences) < len(now) else None
        return sent, train_report(number, trained, len(self._data.training), held, received, touched)

    def restore_ditto(self, number: int) -> None:
        """Put the site's own model back to where it was after a round; it is then the one on the device."""
        if self.ditto:
            self.trainer.rest()
            self.ditto.wake()
            self.ditto.load(self._ditto_state.local_values(number))

    def rest(self) -> None:
        """Leave the device to another network."""
        self.trainer.rest()
        if self.ditto:
            self.ditto.rest()

    def wake(self) -> None:
        """Come back to the device, with the federated model."""
        if self.ditto:
            self.ditto.rest()
        self.trainer.wake()

    def load(self, values: Values, after: int | None = None) -> None:
        """Put the server's values into the network, and the site's own as they were after a round."""
        own = {} if after is None else self._state.local_values(after)
        if not self.trainer.holds(own | values):
            self.trainer.load(own | values)
            self._scored = None

    def score(self) -> Validation:
        """Score the network on the validation cases; what has not changed is not scored again."""
        started = time.monotonic()
        if self._scored is None:
            scores = self.trainer.score(self._data.validation)
            self._scored = validation_report(scores, tuple(self._job.data.labels), 0.0)
        return self._scored.model_copy(update={"seconds": time.monotonic() - started})
