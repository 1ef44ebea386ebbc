"""Federated training of one network, round by round: FedAvg, FedProx and FedBN differ at the sites only.

It may be another network at each site, as long as values of the same name belong together: each value is averaged
over the sites that hold it.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fl_app.config import Job
from fl_app.errors import FederationError
from fl_app.messages import MAIN, TRAIN, VALIDATE, TrainReport, Validation, ValidationReport, payload_bytes
from fl_app.model_file import ModelInfo, save_model
from fl_app.result import software_versions
from fl_app.transfer import decode
from server.aggregation import Weight, build_aggregate
from server.channel import Payload, Values
from server.guard import Claim, Guard
from server.outgoing import Outgoing
from server.participants import Participants
from server.record import RoundLog

_logger = logging.getLogger(__name__)
Names = tuple[str, ...]


@dataclass
class Standing:
    """How far a training has come.

    Attributes:
        values: everything in the network, as it stands.
        round: the last finished round.
        best: round and value of the best model so far, or none.
        norms: lengths of the last rounds' updates, for the guard.
        rest: what was rounded off the model's changes, for the next one.
    """

    values: Values
    round: int = 0
    best: tuple[int, float] | None = None
    norms: list[dict[str, float]] = field(default_factory=list)
    rest: Values = field(default_factory=dict)


@dataclass(frozen=True)
class Plan:
    """What is trained, and how long.

    Attributes:
        network: its name on the wire (see `messages`).
        steps: of each site in a round, at most.
        held: for each site that takes part the names of the values that travel.
        own: for each site the names of values that it holds alone; they travel until it has taken part in a round.
        architectures: for each site its network of the search space, as JSON; none: the network has no variants.
        partial: whether each site trains parts of the network in a round, as it likes (supernet).
    """

    network: str
    steps: int
    held: Mapping[str, Names]
    own: Mapping[str, Names] = field(default_factory=dict)
    architectures: Mapping[str, str] = field(default_factory=dict)
    partial: bool = False


class Training:
    """Trains one network at the sites and keeps the best of its models.

    Args:
        job: the job.
        plan: what is trained.
        standing: where to go on from.
        sites: who takes part.
        log: where the rounds are written down.
        models: folder for ``last.safetensors`` and ``best.safetensors``; none: they are not saved.
        architectures: networks of the search space whose values these are, as JSON.
    """

    def __init__(
        self,
        job: Job,
        plan: Plan,
        standing: Standing,
        sites: Participants,
        log: RoundLog,
        models: Path | None,
        architectures: tuple[str, ...] = (),
    ) -> None:
        self.plan = plan
        self.standing = standing
        self.models = models
        self._job = job
        self._sites = sites
        self._log = log
        self._architectures = architectures
        self._travels = sorted({name for names in plan.held.values() for name in names})
        # of a supernet each site trains another part in each round: that travels as it is
        self._bits = 32 if plan.partial else job.federation.transfer_bits
        self._outgoing = Outgoing(self._bits, standing.round == 0 and plan.network == MAIN, standing.rest)
        self._guard = Guard(plan.steps, sites.cases, job.federation.norm_factor, standing.norms)

    def train_round(self) -> None:
        """One exchange: send the model, take the sites' updates as they come, save the new model.

        Raises:
            FederationError: too few updates could be used.
        """
        started = time.monotonic()
        number = self.standing.round + 1
        settings = self._job.federation
        like = {name: self.standing.values[name] for name in self._travels}
        aggregate = build_aggregate(settings.aggregator, like, self.plan.held, settings.tolerated_sites)
        resent: list[str] = []
        payloads = self._payloads(number, resent.append)
        shares, scores = dict[str, int](), dict[str, Validation]()
        holders = Counter[str]()
        self._guard.begin(number, like)

        def answer(site: str, values: Values, report: dict[str, Any]) -> str | None:
            trained = TrainReport.model_validate(report)
            expected = self._expected(site, trained)
            if not expected:
                return "it trained none of the values that were sent"
            claim = Claim(trained.round, trained.steps, trained.training_cases)
            shapes = {name: like[name].shape for name in expected}
            arrived, values = payload_bytes(values), decode(values, shapes, self._bits) if self._bits < 32 else values
            reason = self._guard.admit(site, values, claim, shapes)
            if reason:
                return reason
            share = self._share(site, trained)
            try:
                aggregate.add(site, values, self._weights(expected, trained, share))
            except FederationError as error:
                return str(error)
            shares[site] = share
            holders.update(expected)
            if trained.received:
                scores[site] = trained.received
            held = {name: like[name] for name in self.plan.held[site]}
            received = payload_bytes(payloads[site].values) + (payload_bytes(held) if site in resent else 0)
            self._log.site_trained(site, trained, received, arrived)
            _logger.info(f"{self.plan.network}, round {number}: {site} loss {trained.loss}, {trained.steps} steps")
            return None

        self._log.round_started(number)
        exchange = self._sites.ask(TRAIN, payloads, answer)
        self._choose(number - 1, scores)
        self._sites.require_quorum(exchange, f"in round {number}")
        # the mean of a single site's update would be that update, for all to see
        least = min(self._job.search.min_holders, len(shares))
        after = {name: value if holders[name] >= least else like[name] for name, value in aggregate.apply().items()}
        if number == 1 and not self.plan.partial:
            self._warn_of_idle(like, holders, least)
        self.standing.values |= self._outgoing.settle(like, after)
        self.standing.rest = self._outgoing.rest
        self.standing.round, self.standing.norms = number, self._guard.norms
        self._save("last", number, None)
        seconds = time.monotonic() - started
        self._log.round_finished(seconds, dict(sorted(shares.items())), exchange.left_out, aggregate.remarks)

    def _warn_of_idle(self, values: Values, holders: Mapping[str, int], least: int) -> None:
        """Where memory is scarce at most sites, all may leave the same weights to the others."""
        idle = sum(value.numel() for name, value in values.items() if holders[name] < least)
        if idle:
            share = idle / sum(value.numel() for value in values.values())
            _logger.warning(
                f"{self.plan.network}: {share:.0%} of the values stay as they are, since fewer than {least} sites "
                "train them - set training.most_frozen_share: 0, so that sites with little memory train all"
            )

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
        exchange = self._sites.ask(VALIDATE, self._payloads(number), answer)
        self._choose(number, scores)
        self._sites.require_quorum(exchange, "when the last model was validated")

    def sent_names(self, site: str) -> Names:
        """The values that a site gets: until an update of it has counted, also those that it holds alone."""
        held = self.plan.held[site]
        return held if self._log.took_part(site) else (*held, *self.plan.own.get(site, ()))

    def _payloads(self, number: int, resent: Callable[[str], None] = lambda site: None) -> dict[str, Payload]:
        """What each site gets; sites that get the same share one object."""
        made: dict[tuple[Names, Names, str], Payload] = {}
        together: dict[str, Payload] = {}
        # the best round so far: a site keeps what never leaves it as it was then
        best = (self.standing.best or (0, 0.0))[0]
        for site in self.plan.held:
            names, facts = self.sent_names(site), self.about(site)
            key = names, tuple(facts["own"]), facts["architecture"]
            if key not in made:
                held = self.plan.held[site]
                told = {**facts, "round": number, "best_round": best}
                made[key] = self._outgoing.payload(self.standing.values, held, names[len(held) :], told, resent)
            together[site] = made[key]
        return together

    def about(self, site: str) -> dict[str, Any]:
        """Which network this is, as a site must know it to build it."""
        own, architecture = self.plan.own.get(site, ()), self.plan.architectures.get(site, "")
        return {
            "network": self.plan.network,
            "own": list(own),
            "architecture": architecture,
            "consensus": self._architectures[0] if architecture else "",
        }

    def _expected(self, site: str, report: TrainReport) -> Names:
        """The names of the values that an update must hold."""
        held = self.plan.held[site]
        if report.touched is None and not self.plan.partial:
            return held
        touched = set(report.touched or ())
        return tuple(name for name in held if name in touched)

    def _weights(self, expected: Names, report: TrainReport, share: int) -> Weight:
        if self.plan.partial:
            return {name: share * (report.touched or {})[name] for name in expected}
        return share if len(expected) == len(self._travels) else dict.fromkeys(expected, share)

    def _share(self, site: str, report: TrainReport) -> int:
        rule = self._job.federation.weight_by
        # the cases that the site declared before the first round count, not what it says now
        return {"cases": self._sites.cases[site], "steps": report.steps, "equal": 1}[rule]

    def _choose(self, number: int, scores: Mapping[str, Validation]) -> None:
        """Keep the current model, which is the one after round ``number``, if it is the best trained one so far."""
        if not scores:
            return
        metric = self._job.federation.best_metric
        value = self._log.model_validated(number, dict(sorted(scores.items())))
        told = ", ".join(f"{site} {validation.metrics}" for site, validation in sorted(scores.items()))
        _logger.info(f"{self.plan.network}, model after round {number}: {metric} {value} ({told})")
        if number and value is not None and (self.standing.best is None or value > self.standing.best[1]):
            self.standing.best = (number, value)
            self._save("best", number, (metric, value))

    def _save(self, name: str, number: int, metric: tuple[str, float] | None) -> None:
        if self.models:
            info = ModelInfo(self._job, number, metric, software_versions(), self._architectures)
            save_model(self.models / f"{name}.safetensors", self.standing.values, info)
