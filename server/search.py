"""The server's part in an architecture search: train the supernet, find one network for all, let each site extend it.

1. Rounds over the supernet: each site trains paths that fit its own memory (`server.training`).
2. Generations: the sites score candidates that fit every site's memory; the best becomes the consensus.
3. Each site derives its own network within its own budget, and says which.
4. Rounds over the networks that were found, each value averaged over the sites that hold it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from fl_app.config import Job
from fl_app.errors import ConfigError
from fl_app.messages import (
    DERIVE,
    PROPOSE,
    SCORE,
    SUPERNET,
    DeriveReport,
    ProposeReport,
    ScoreReport,
    SearchReady,
)
from fl_app.networks.space.architecture import Architecture, read_architecture
from fl_app.networks.space.memory import MemoryModel
from fl_app.networks.space.sampling import NetworkSampler
from fl_app.networks.space.supernet import weight_names, weight_sizes
from fl_app.result import Generation, SearchResult, weighted_mean
from server.channel import Payload, Values
from server.found import SearchState
from server.participants import Participants
from server.record import Record
from server.training import Names, Plan

_logger = logging.getLogger(__name__)
_TRIES = 200


def memory_model(job: Job, ready: SearchReady) -> MemoryModel:
    """Training memory of the networks of a job's space, as a site has fitted it."""
    assert ready.fit is not None  # without one a site takes no part in a search of cells
    fitted = ready.fit.model_dump()
    return MemoryModel(
        job.search.space, len(job.data.labels), job.training_patch, batch=job.training.batch_size, **fitted
    )


class Search:
    """Finds a network for every site.

    Args:
        job: the job.
        sites: who takes part.
        record: of the whole run; its result gets a `SearchResult`.
        state: where to go on from.
        supernet: the supernet's values that travel, as trained.
        save: writes a checkpoint.
    """

    def __init__(
        self,
        job: Job,
        sites: Participants,
        record: Record,
        state: SearchState,
        supernet: Values,
        save: Callable[[], None],
    ) -> None:
        self.state = state
        self._job = job
        self._space = job.search.space
        self._sites = sites
        self._record = record
        self._supernet = supernet
        self._save = save
        self._models = {site: memory_model(job, ready) for site, ready in state.ready.items()}
        self._budgets = {site: ready.budget_bytes for site, ready in state.ready.items()}
        # the site whose budget leaves least beside what every network takes
        tightest = min(self._budgets, key=lambda site: (self._budgets[site] - self._models[site].fixed, site))
        budget = self._budgets[tightest]
        self._sampler = NetworkSampler(self._models[tightest], budget, least=job.search.least_share * budget)

    @property
    def result(self) -> SearchResult:
        """What the run's result says of the search."""
        assert self._record.result.search is not None
        return self._record.result.search

    def find(self) -> None:
        """Find the network for all, and have each site say which is its own; both are then in the state.

        Raises:
            FederationError: too few sites answered.
            BudgetError: some site's memory holds no network of the space.
        """
        while self.state.consensus is None:
            self._generation()
            self._save()
        if not self.state.derived:
            self._derive(read_architecture(self.state.consensus, self._space))
            self._save()

    def _generation(self) -> None:
        started = time.monotonic()
        settings = self._job.search
        number = self.state.generation + 1
        chance = np.random.default_rng((self._job.seed, number))
        if settings.strategy == "random" or not settings.generations:
            self.state.consensus = self._candidate(chance).to_json()
            return
        wanted = self._proposals() if settings.strategy == "gradient" and number == 1 else self._candidates(chance)
        losses = self._score(wanted)
        self.state.losses |= losses
        self.state.generation = number
        best = min(self.state.losses, key=lambda text: (self.state.losses[text], text), default=None)
        self.result.generations.append(
            Generation(
                number=number,
                scored=len(losses),
                best_loss=self.state.losses[best] if best else None,
                seconds=round(time.monotonic() - started, 3),
            )
        )
        if number >= settings.generations:
            self.state.consensus = best or self._candidate(chance).to_json()
        self._record.save()

    def _proposals(self) -> list[str]:
        """What the sites like best of the networks that every site can train."""
        proposed: dict[str, str] = {}

        def answer(site: str, values: Values, report: dict[str, Any]) -> str | None:
            told = ProposeReport.model_validate(report)
            if not self._fits_all(read_architecture(told.architecture, self._space)):
                return "the network that it proposes does not fit every site's memory"
            proposed[site] = told.architecture
            return None

        payload = Payload({}, {"network": SUPERNET, "round": 0, "budget_bytes": min(self._budgets.values())})
        exchange = self._sites.ask(PROPOSE, dict.fromkeys(self.state.ready, payload), answer)
        self._sites.require_quorum(exchange, "when the sites proposed networks")
        return sorted(set(proposed.values()))

    def _candidates(self, chance: np.random.Generator) -> list[str]:
        """Networks that every site can train: at first drawn at random, then changed from the best so far."""
        known = sorted(self.state.losses, key=lambda text: (self.state.losses[text], text))
        parents = [read_architecture(text, self._space) for text in known[: max(1, self._job.search.candidates // 2)]]
        wanted: list[str] = []
        for _ in range(_TRIES):
            if len(wanted) == self._job.search.candidates:
                break
            if parents:
                parent = parents[int(chance.integers(len(parents)))]
                candidate = self._sampler.mutate(parent, chance)
            else:
                candidate = self._candidate(chance)
            text = candidate.to_json()
            if text not in wanted and text not in self.state.losses and self._fits_all(candidate):
                wanted.append(text)
        return wanted

    def _candidate(self, chance: np.random.Generator) -> Architecture:
        for _ in range(_TRIES):
            candidate = self._sampler.draw(chance)
            if self._fits_all(candidate):
                return candidate
        raise ConfigError(
            "search.space: no network fits every site's memory budget - lower search.space.channels, "
            "data.patch_voxels or training.batch_size, or raise the smallest budget"
        )

    def _fits_all(self, network: Architecture) -> bool:
        return all(self._models[site].total(network) <= budget for site, budget in self._budgets.items())

    def _score(self, wanted: list[str]) -> dict[str, float]:
        """Mean validation loss of each network over the sites, weighted by validation cases."""
        reports: dict[str, ScoreReport] = {}

        def answer(site: str, values: Values, report: dict[str, Any]) -> str | None:
            scored = ScoreReport.model_validate(report)
            if len(scored.losses) != len(wanted):
                return f"it scored {len(scored.losses)} networks of {len(wanted)}"
            reports[site] = scored
            return None

        names = {name for text in wanted for name in weight_names(self._space, read_architecture(text, self._space))}
        facts = {"network": SUPERNET, "round": self.state.generation + 1, "architectures": wanted}
        payload = Payload({name: self._supernet[name] for name in sorted(names & self._supernet.keys())}, facts)
        exchange = self._sites.ask(SCORE, dict.fromkeys(self.state.ready, payload), answer)
        self._sites.require_quorum(exchange, "when networks were scored")
        means = (
            weighted_mean((report.losses[place], report.cases) for report in reports.values())
            for place in range(len(wanted))
        )
        return {text: mean for text, mean in zip(wanted, means, strict=True) if mean is not None}

    def _derive(self, consensus: Architecture) -> None:
        derived: dict[str, DeriveReport] = {}

        def answer(site: str, values: Values, report: dict[str, Any]) -> str | None:
            told = DeriveReport.model_validate(report)
            network = read_architecture(told.architecture, self._space)
            if self._models[site].total(network) > self._budgets[site]:
                return "the network that it chose is above its own memory budget"
            if self._job.search.mode != "free" and not consensus.is_subset(network):
                return "the network that it chose does not hold the consensus"
            derived[site] = told
            return None

        facts = {"network": SUPERNET, "round": 0, "consensus": consensus.to_json()}
        payload = Payload(self._supernet, facts)
        exchange = self._sites.ask(DERIVE, dict.fromkeys(self.state.ready, payload), answer)
        self._sites.require_quorum(exchange, "when the sites chose their networks")
        for site in self.state.ready:
            # who did not choose can still come back, and the consensus fits every site's memory
            told = derived.get(site) or self._consensus_at(site, consensus)
            self.state.derived[site] = told.architecture
            entry = self.result.sites[site]
            entry.architecture, entry.parameters = told.architecture, told.parameters
            entry.predicted_bytes, entry.measured_bytes = told.predicted_bytes, told.measured_bytes
            _logger.info(f"{site} trains a network of {told.parameters} parameters, {told.predicted_bytes} bytes")
        self.result.consensus = consensus.to_json()
        self._record.save()

    def _consensus_at(self, site: str, consensus: Architecture) -> DeriveReport:
        return DeriveReport(
            architecture=consensus.to_json(),
            parameters=sum(weight_sizes(self._space, consensus, len(self._job.data.labels)).values()),
            predicted_bytes=round(self._models[site].total(consensus)),
            measured_bytes=0,
            seconds=0.0,
        )


def supernet_plan(job: Job, sites: Iterable[str], exchanged: Names) -> Plan:
    """Every site may train any part of the supernet."""
    return Plan(SUPERNET, job.search.supernet_steps, dict.fromkeys(sites, exchanged), partial=True)
