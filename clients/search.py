"""A site's part in an architecture search: train paths of the supernet, score networks, choose its own."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from clients.found import found_trainer
from clients.state import SiteState
from fl_app.config import Job
from fl_app.data.site_data import SiteData
from fl_app.errors import BudgetError
from fl_app.messages import DeriveReport, MemoryFit, ProposeReport, ScoreReport, SearchReady, TrainReport
from fl_app.networks.space.architecture import Architecture, read_architecture
from fl_app.networks.space.decoding import mebibytes
from fl_app.networks.space.memory import MemoryModel
from fl_app.networks.space.sampling import NetworkSampler, sample_paths
from fl_app.networks.space.supernet import DiscreteNetwork, weight_sizes
from fl_app.search.gradient import GradientSearch
from fl_app.search.memory import calibrate, measured_memory
from fl_app.search.sampling import SupernetTrainer
from fl_app.search.zero_cost import naswot, synflow
from fl_app.site import SiteSettings
from fl_app.training.device import memory_budget, peak_memory
from fl_app.training.fitting import Fit, fit_windows, is_quick, training_memory, with_windows
from fl_app.training.randomness import start_stream
from fl_app.training.reporting import train_report
from fl_app.training.trainer import Steps, Trainer, ready_network

Values = dict[str, torch.Tensor]
_logger = logging.getLogger(__name__)
_PATCHES = 8  # of validation cases, that networks are compared on
_FILTER_PATCHES = 4  # of them, that untrained networks are scored on


class SiteSearch:
    """Everything that a site does before it has a network of its own.

    Args:
        job: the job.
        site: the site's name.
        settings: the site's.
        data: the site's cases.
        device: where to compute.
        state: folder for what a restart needs; none: nothing is kept.
        round_number: the supernet's last finished round.
        after_step: called after each optimiser step; what it raises ends the task.
    """

    def __init__(
        self,
        job: Job,
        site: str,
        settings: SiteSettings,
        data: SiteData,
        device: torch.device,
        state: Path | None,
        round_number: int,
        after_step: Callable[[], None],
    ) -> None:
        self._job = job
        self._space = job.search.space
        self._site = site
        self._data = data
        self._device = device
        self._budget = memory_budget(settings.memory_budget_gib, device)
        self._longest = settings.window_budget_s
        self._trainer = SupernetTrainer(job, self._space, data.training, device, f"{site} supernet")
        self._trainer.after_step = after_step
        self._gradient: GradientSearch | None = None
        self._state = SiteState(state)
        self._round_number = round_number
        if job.search.strategy != "gradient":
            self._state.restore(self._trainer, round_number)
        # what the best network is chosen on
        self._patches = self._trainer.validation_patches(data.validation or data.training, _PATCHES)

    def ready(self, main: Fit) -> SearchReady:
        """What fits the site's memory, from a few networks that are tried.

        Args:
            main: how the job's own network is trained here.

        Raises:
            BudgetError: not even the smallest network of the space fits; or, to search by gradients, not all.
        """
        self._memory: MemoryModel = calibrate(self._job, self._space, self._device, self._budget)
        if self._job.search.strategy == "gradient":
            self._gradient = self._begin_gradient()
        _logger.info(f"memory budget {self._budget} bytes, the job's own network takes {main.memory_bytes}")
        return SearchReady(
            budget_bytes=self._budget,
            main_bytes=main.memory_bytes,
            fit=MemoryFit(
                scale=self._memory.scale,
                offset=self._memory.offset,
                value_bytes=2 if self._memory.value_bytes == 2 else 4,
                weight_copies=self._memory.weight_copies,
                recompute=self._memory.recompute,
            ),
        )

    def rest(self) -> None:
        """Leave the device to another network."""
        (self._gradient or self._trainer).rest()

    def wake(self) -> None:
        """Come back to the device."""
        (self._gradient or self._trainer).wake()

    def train(self, values: Values, facts: Mapping[str, Any]) -> tuple[Values, TrainReport]:
        """Train some paths within the budget; the differences of what was trained."""
        settings = self._job.search
        number = int(facts["round"])
        engine = self._gradient or self._trainer
        engine.load(values)
        if self._gradient:
            every = self._gradient.search(number, settings.supernet_steps, settings.supernet_rounds)
            return self._trained(engine, values, number, every, dict.fromkeys(engine.exchanged, every.steps))
        chance = start_stream(self._job.seed, self._site, f"paths of round {number}")
        organs = len(self._job.data.labels)
        paths = sample_paths(self._any, settings.paths_per_round, settings.upload_share, organs, chance)
        done = self._trainer.train_paths(number, settings.supernet_steps, settings.supernet_rounds, paths)
        touched = {name: count for name, count in done.touched.items() if name in values}
        return self._trained(engine, values, number, done, touched)

    def _trained(
        self, engine: Trainer, values: Values, number: int, done: Steps, touched: dict[str, int]
    ) -> tuple[Values, TrainReport]:
        """The state is kept; the differences of what was trained, and a report."""
        self._state.keep(engine, number, 0)
        _logger.info(f"supernet, round {number}: loss {done.loss}, {done.steps} steps")
        now = engine.shared_values()
        report = train_report(number, done, len(self._data.training), peak_memory(self._device), touched=touched)
        return {name: now[name] - values[name] for name in touched}, report

    def propose(self, facts: Mapping[str, Any]) -> ProposeReport:
        """The network that this site likes best of those that every site can train."""
        assert self._gradient is not None  # the server asks only in a search by gradients
        network = self._gradient.decode(budget=min(self._budget, int(facts["budget_bytes"])))
        return ProposeReport(architecture=network.to_json())

    def score(self, values: Values, facts: Mapping[str, Any]) -> ScoreReport:
        """The loss of networks on the site's validation patches, with the supernet's weights."""
        started = time.monotonic()
        self._load(values)
        networks = [read_architecture(text, self._space) for text in facts["architectures"]]
        losses = tuple(self._loss(network) for network in networks)
        return ScoreReport(losses=losses, cases=len(self._data.validation), seconds=time.monotonic() - started)

    def derive(self, values: Values, facts: Mapping[str, Any]) -> DeriveReport:
        """The site's own network: the consensus, extended as far as its budget and its validation patches like it."""
        started = time.monotonic()
        self._load(values)
        consensus = read_architecture(str(facts["consensus"]), self._space)
        tried = (self._tried(network) for network in self._liked(consensus))
        # the memory model is right to some percent: what is over the budget in truth is left out, and what is slow
        fitting = (each for each in tried if each[1] <= self._budget and each[2])
        network, taken, quick = next(fitting, None) or self._tried(consensus)
        if not quick:
            _logger.warning(f"no network that holds the one for all keeps to window_budget_s: {self._longest}")
        sizes = weight_sizes(self._space, network, len(self._job.data.labels))
        return DeriveReport(
            architecture=network.to_json(),
            parameters=sum(sizes.values()),
            predicted_bytes=round(self._memory.total(network)),
            measured_bytes=taken,
            seconds=time.monotonic() - started,
        )

    def _tried(self, network: Architecture) -> tuple[Architecture, int, bool]:
        """A network with the memory that training it takes, or predicting if that is above the budget; and whether it
        is quick enough.
        """
        module = DiscreteNetwork(self._space, network, len(self._job.data.labels))
        taken = measured_memory(module, self._job, self._device)
        _, taken = with_windows(module, self._job, self._device, self._budget, taken)
        return network, taken, is_quick(module, self._job, self._device, self._longest)

    def trainer(self, architecture: str, own: Sequence[str], consensus: str) -> Trainer:
        """A trainer of the site's own network and of what all sites have; what no other site holds stays here."""
        network = ready_network(self._job, self._device, architecture)
        job, _ = fit_windows(network, self._job, self._device, self._budget)
        trainer = found_trainer(self._site, self._data, self._device, (job, architecture), own, (job, consensus))
        local = self._local_values()
        trainer.load({name: local[name] for name in trainer.local_values() if name in local})
        return trainer

    def _load(self, values: Values) -> None:
        """What networks are compared with: the shared values, and the site's own."""
        self._trainer.load({**self._local_values(), **values})

    def _local_values(self) -> Values:
        """What never travels, and was learned here (FedBN)."""
        return (self._gradient or self._trainer).local_values()

    def _liked(self, consensus: Architecture) -> Sequence[Architecture]:
        """Networks that the site could take for its own, the best first."""
        settings = self._job.search
        if settings.mode == "consensus":
            return []
        chance = start_stream(self._job.seed, self._site, "own network")
        # with weights that were hardly trained the smaller network looks better: make use of the budget
        sampler = self._sampler(None if settings.mode == "free" else consensus, settings.own_share)
        if settings.strategy == "random":
            return [sampler.draw(chance) for _ in range(settings.candidates)]
        if self._gradient:
            candidates = {self._gradient.decode(sampler.must_contain)}
        else:
            candidates = self._filtered({sampler.draw(chance) for _ in range(settings.candidates * self._draws)})
        return sorted(candidates, key=lambda network: (self._loss(network), network.to_json()))

    @property
    def _draws(self) -> int:
        """How many candidates are drawn for one that is kept."""
        return 1 if self._job.search.filter == "none" else 2

    def _filtered(self, candidates: set[Architecture]) -> set[Architecture]:
        """Those of the best scores of untrained networks."""
        wanted = self._job.search.filter
        if wanted == "none":
            return candidates
        images = torch.cat([images for images, _ in self._patches[:_FILTER_PATCHES]])

        def worth(network: Architecture) -> float:
            untrained = DiscreteNetwork(self._space, network, len(self._job.data.labels), self._job.seed)
            return synflow(untrained, self._job.data.patch_voxels) if wanted == "synflow" else naswot(untrained, images)

        ordered = sorted(candidates, key=lambda network: (-worth(network), network.to_json()))
        return set(ordered[: -(-len(ordered) // self._draws)])

    def _begin_gradient(self) -> GradientSearch:
        cases = self._data.training
        engine = GradientSearch(self._job, self._memory, self._budget, cases, self._device, f"{self._site} supernet")
        needed = training_memory(engine.mixture, self._job, self._device)
        if needed > self._budget:
            raise BudgetError(
                f"search.strategy gradient trains all networks at once, which takes {mebibytes(needed)} here, and the "
                f"memory budget is {mebibytes(self._budget)} - use strategy sampling, or raise memory_budget_gib",
                needed,
            )
        engine.after_step = self._trainer.after_step
        self._state.restore(engine, self._round_number)
        return engine

    @cached_property
    def _any(self) -> NetworkSampler:
        """Draws from all networks within the budget."""
        return self._sampler()

    def _sampler(self, must_contain: Architecture | None = None, least_share: float = 0.0) -> NetworkSampler:
        least = max(least_share, self._job.search.least_share) * self._budget
        return NetworkSampler(self._memory, self._budget, must_contain, least)

    def _loss(self, network: Architecture) -> float:
        return self._trainer.patch_loss(network, self._patches)
