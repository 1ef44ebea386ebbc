"""Federated training of one network, round by round: FedAvg, FedProx and FedBN differ at the sites only."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fl_app.config import Job
from fl_app.errors import FederationError
from fl_app.messages import TRAIN, VALIDATE, TrainReport, Validation, ValidationReport, payload_bytes
from fl_app.model_file import ModelInfo, save_model
from fl_app.result import software_versions
from server.aggregation import WeightedMean
from server.channel import Payload, Values
from server.participants import Participants
from server.record import RoundLog

_logger = logging.getLogger(__name__)


@dataclass
class Standing:
    """How far a training has come.

    Attributes:
        values: everything in the network, as it stands.
        round: the last finished round.
        best: round and value of the best model so far, or none.
    """

    values: Values
    round: int = 0
    best: tuple[int, float] | None = None


class Training:
    """Trains one network at the sites and keeps the best of its models.

    Args:
        job: the job.
        network: its name on the wire (see `messages`).
        standing: where to go on from.
        exchanged: names of the values that travel.
        sites: who takes part.
        log: where the rounds are written down.
        models: folder for ``last.safetensors`` and ``best.safetensors``.
    """

    def __init__(
        self,
        job: Job,
        network: str,
        standing: Standing,
        exchanged: tuple[str, ...],
        sites: Participants,
        log: RoundLog,
        models: Path,
    ) -> None:
        self.standing = standing
        self.models = models
        self._job = job
        self._network = network
        self._exchanged = exchanged
        self._sites = sites
        self._log = log

    def train_round(self) -> None:
        """One exchange: send the model, take the sites' updates as they come, save the new model.

        Raises:
            FederationError: too few updates could be used.
        """
        started = time.monotonic()
        number = self.standing.round + 1
        shared = self.shared()
        mean, weights, scores = WeightedMean(shared), dict[str, int](), dict[str, Validation]()

        def answer(site: str, values: Values, report: dict[str, Any]) -> str | None:
            trained = TrainReport.model_validate(report)
            if trained.round != number:
                return f"it answered for round {trained.round}"
            if trained.steps > self._job.training.steps_per_round:
                return f"it claims {trained.steps} steps, the job has {self._job.training.steps_per_round}"
            weight = self._weight(site, trained)
            try:
                mean.add(values, weight)
            except FederationError as error:
                return str(error)
            weights[site], scores[site] = weight, trained.received
            self._log.site_trained(site, trained, payload_bytes(shared), payload_bytes(values))
            _logger.info(f"round {number}: {site} loss {trained.loss}, {trained.steps} steps, weight {weight}")
            return None

        self._log.round_started(number)
        payload = Payload(shared, self._facts(number))
        exchange = self._sites.ask(TRAIN, dict.fromkeys(self._sites.names, payload), answer)
        self._choose(number - 1, scores)
        self._sites.require_quorum(exchange, f"in round {number}")
        self.standing.values |= mean.apply()
        self.standing.round = number
        self._save("last", number, None)
        self._log.round_finished(time.monotonic() - started, dict(sorted(weights.items())), exchange.left_out)

    def validate(self) -> None:
        """Have the last model scored, which no round after it does.

        Raises:
            FederationError: too few sites answered.
        """
        scores: dict[str, Validation] = {}

        def answer(site: str, values: Values, report: dict[str, Any]) -> str | None:
            scores[site] = ValidationReport.model_validate(report).received
            return None

        number = self.standing.round
        payload = Payload(self.shared(), self._facts(number))
        exchange = self._sites.ask(VALIDATE, dict.fromkeys(self._sites.names, payload), answer)
        self._choose(number, scores)
        self._sites.require_quorum(exchange, "when the last model was validated")

    def shared(self) -> Values:
        """The values that travel."""
        return {name: self.standing.values[name] for name in self._exchanged}

    def _facts(self, number: int) -> dict[str, Any]:
        # the best round so far: a site keeps what never leaves it (FedBN) as it was then
        return {"network": self._network, "round": number, "best_round": (self.standing.best or (0, 0.0))[0]}

    def _weight(self, site: str, report: TrainReport) -> int:
        rule = self._job.federation.weight_by
        # the cases that the site declared before the first round count, not what it says now
        return {"cases": self._sites.ready[site].training_cases, "steps": report.steps, "equal": 1}[rule]

    def _choose(self, number: int, scores: Mapping[str, Validation]) -> None:
        """Keep the current model, which is the one after round ``number``, if it is the best trained one so far."""
        metric = self._job.federation.best_metric
        value = self._log.model_validated(number, dict(sorted(scores.items())))
        told = ", ".join(f"{site} {validation.metrics}" for site, validation in sorted(scores.items()))
        _logger.info(f"model after round {number}: {metric} {value} ({told})")
        if number and value is not None and (self.standing.best is None or value > self.standing.best[1]):
            self.standing.best = (number, value)
            self._save("best", number, (metric, value))

    def _save(self, name: str, number: int, metric: tuple[str, float] | None) -> None:
        info = ModelInfo(self._job, number, metric, software_versions())
        save_model(self.models / f"{name}.safetensors", self.standing.values, info)
