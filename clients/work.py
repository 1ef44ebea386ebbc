"""A site's part in a job: which task is answered by what. Knows nothing of FLARE."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from clients.local import LocalNetwork
from clients.personal import make_personal_models
from clients.search import SiteSearch
from clients.widths import SiteWidths
from fl_app.config import Job
from fl_app.data.site_data import load_site_data
from fl_app.errors import BudgetError, PolicyError
from fl_app.files import replacing
from fl_app.ledger import TRAIL, Ledger, traces
from fl_app.messages import (
    DERIVE,
    MAIN,
    PERSONALISE,
    PREPARE,
    PROPOSE,
    SCORE,
    SEARCHED,
    SUPERNET,
    TEST,
    TRAIN,
    VALIDATE,
    PersonalReport,
    Report,
    SiteReady,
    TestReport,
    ValidationReport,
)
from fl_app.networks.space.decoding import mebibytes
from fl_app.reports.tested_cases import write_tested_cases
from fl_app.result import software_versions
from fl_app.site import SiteSettings
from fl_app.site_limits import refusals
from fl_app.training.device import choose_devices, memory_budget, memory_for_cases
from fl_app.training.fitting import Fit, fit_training, too_large, with_training
from fl_app.training.leader import gather_team
from fl_app.training.parallel import Alone
from fl_app.training.reporting import test_report
from fl_app.training.trainer import Trainer, ready_network
from fl_app.training.trial import quickest_way

Values = dict[str, torch.Tensor]
Facts = Mapping[str, Any]
_logger = logging.getLogger(__name__)


class SiteWork:
    """Answers the server's tasks. Lives as long as the job, so data and optimiser stay in memory between rounds.

    Args:
        job: the job.
        site: the site's name.
        settings: what the site decides for itself.
        state: folder for what a restart in mid-job needs; none: nothing is kept.
        after_step: called after each optimiser step; what it raises ends the task.
    """

    def __init__(
        self,
        job: Job,
        site: str,
        settings: SiteSettings,
        state: Path | None = None,
        after_step: Callable[[], None] = lambda: None,
    ) -> None:
        self._job = job
        self._site = site
        self._settings = settings
        self._state = state
        self._after_step = after_step
        self._prepared = False
        self._team = Alone()
        self._beside: dict[str, Any] = {}
        self._tasks: dict[str, Callable[[Values, Facts], tuple[Values, Report]]] = {
            PREPARE: self._prepare,
            TRAIN: self._train,
            VALIDATE: self._validate,
            TEST: self._test,
            PROPOSE: lambda values, facts: ({}, self._searching().propose(facts)),
            SCORE: lambda values, facts: ({}, self._searching().score(values, facts)),
            DERIVE: lambda values, facts: ({}, self._searching().derive(values, facts)),
            PERSONALISE: self._personalise,
        }

    def do(self, task: str, values: Values, facts: Facts) -> tuple[Values, dict[str, Any]]:
        """Do one task: tensors and plain facts in, tensors and a report out.

        A process that was started in mid-job prepares itself first, and says so beside the report.

        Raises:
            Exception: whatever went wrong; `clients.failures.classify` says what the server may hear of it.
        """
        if task != PREPARE and not self._prepared:
            # from now on beside every report: the first ones may come too late to count
            self._beside["ready"] = self._prepare({}, facts)[1].model_dump()
        trail = Ledger(self._settings.output / TRAIL) if self._settings.output else None
        if trail:
            told = {key: facts.get(key) for key in ("network", "round")}
            trail.write("received", task=task, **told, **traces(values))
        sent, report = self._tasks[task](values, facts)
        if trail:
            trail.write("sent", task=task, **traces(sent))
        return sent, report.model_dump() | self._beside

    def close(self) -> None:
        """End the processes that it has started."""
        self._team.end()

    def _prepare(self, values: Values, facts: Facts) -> tuple[Values, SiteReady]:
        started = time.monotonic()
        if self._settings.threads:
            torch.set_num_threads(self._settings.threads)
        devices = choose_devices(self._settings.device, self._settings.processes)
        self._device = devices[0]
        self._data = load_site_data(
            self._settings.data, self._job.data, self._job.seed, self._settings.cache, self._settings.cases
        )
        forbidden = refusals(self._job, self._settings, len(self._data.training))
        if forbidden:
            raise PolicyError("; ".join(forbidden))
        self._team.end()
        self._team = gather_team(self._job, devices, self._settings.cache)
        if self._team.size > 1:  # all gradients are summed up before weights are updated
            self._job = with_training(self._job, early_update=False)
        elif not self._settings.memory_budget_gib:
            self._data = self._data.near(self._device, memory_for_cases(self._device))
        self._rounds: Mapping[str, int] = facts.get("rounds", {})
        self._networks: dict[str, LocalNetwork] = {}
        self._found: SiteSearch | None = None
        fit = self._fit_main()
        trainer = self._quickest_trainer(fit)
        trainer.rest()
        search = self._finder().ready(fit) if self._job.search.wanted else None
        restored = None
        if fit.fits:
            self._networks[MAIN] = self._local(MAIN, trainer, self._job.federation.rounds)
            restored = self._networks[MAIN].restore(self._rounds.get(MAIN, 0))
        self._prepared = True
        return {}, SiteReady(
            training_cases=len(self._data.training),
            validation_cases=len(self._data.validation),
            test_cases=len(self._data.test),
            warnings=len(self._data.warnings),
            device=self._describe_device(),
            precision=trainer.precision.name,
            versions=software_versions(),
            restored=restored,
            saving=fit.saving,
            search=search,
            seconds=time.monotonic() - started,
        )

    def _fit_main(self) -> Fit:
        """How the job's own network is trained here.

        Raises:
            BudgetError: it does not fit the site's budget, and the job has no search that finds another one.
        """
        wanted = self._settings.memory_budget_gib
        if not wanted and not self._job.search.wanted:
            return Fit(self._job, ready_network(self._job, self._device), 0, True)
        budget = memory_budget(wanted, self._device)
        fit = fit_training(self._job, self._device, budget, processes=self._team.size)
        if not fit.fits and not self._job.search.wanted:
            raise BudgetError(too_large(fit, budget), fit.memory_bytes)
        if fit.saving.words:
            _logger.info(f"memory budget {mebibytes(budget)}: training takes {fit.words}")
        return fit

    def _quickest_trainer(self, fit: Fit) -> Trainer:
        """A trainer of the job's network that computes in the quickest way; what was tried is logged and kept here."""
        patches = -(-self._job.training.batch_size // self._team.size)  # that this process has of a batch
        training = fit.job.training.model_copy(update={"batch_size": patches})
        own_part = fit.job.model_copy(update={"training": training})
        budgeted, cache = bool(self._settings.memory_budget_gib), self._settings.cache
        self._way, tried = quickest_way(own_part, fit.network, self._device, cache, budgeted)
        if tried:
            times = {name: round(seconds, 4) for name, seconds in tried.items()}
            _logger.info(f"training steps in {self._way}: seconds of those tried {times}")
            if self._settings.output:
                with replacing(self._settings.output / "training_steps.json") as temporary:
                    temporary.write_text(json.dumps({"chosen": str(self._way), "seconds": times}, indent=1) + "\n")
        return Trainer(fit.job, self._data.training, self._device, self._site, fit.network, self._way)

    def _describe_device(self) -> str:
        name = torch.cuda.get_device_name(self._device) if self._device.type == "cuda" else "cpu"
        return name if self._team.size == 1 else f"{name}, {self._team.size} processes"

    def _train(self, values: Values, facts: Facts) -> tuple[Values, Report]:
        if facts["network"] == SUPERNET:
            return self._searching().train(values, facts)
        return self._network(facts).train(values, facts)

    def _validate(self, values: Values, facts: Facts) -> tuple[Values, ValidationReport]:
        network = self._network(facts)
        network.load(network.incoming.model(values, facts))
        return {}, ValidationReport(received=network.score())

    def _test(self, values: Values, facts: Facts) -> tuple[Values, TestReport]:
        started = time.monotonic()
        network = self._network(facts)
        network.load(values, after=int(facts["round"]))
        scores = network.trainer.score(self._data.test, native=True)
        if self._settings.output:
            try:
                write_tested_cases(self._settings.output, network.trainer, self._data.test, scores)
            except Exception:
                _logger.warning("the page of the tested cases could not be made", exc_info=True)
        _logger.info(f"test of the model after round {facts['round']}: {scores}")
        return {}, test_report(scores, tuple(self._job.data.labels), time.monotonic() - started)

    def _personalise(self, values: Values, facts: Facts) -> tuple[Values, PersonalReport]:
        # a process that was started anew has not built them yet
        networks = {name: self._network(told) for name, told in facts["networks"].items()}
        return {}, make_personal_models(self._job, self._site, self._settings, self._data, networks, values, facts)

    def _network(self, facts: Facts) -> LocalNetwork:
        """The network that a task is about; one that was searched is built when it is first named."""
        name = str(facts["network"])
        self._leave_device_to(name)
        if name == SEARCHED and name not in self._networks:
            trainer = self._finder().trainer(str(facts["architecture"]), facts["own"], str(facts["consensus"]))
            self._networks[name] = self._local(name, trainer, self._job.search.rounds, str(facts["architecture"]))
            self._networks[name].restore(self._rounds.get(name, 0))
        return self._networks[name]

    def _searching(self) -> SiteSearch:
        """The search, with its network on the device."""
        self._leave_device_to(SUPERNET)
        return self._search()

    def _leave_device_to(self, wanted: str) -> None:
        """The site's memory budget is for one network: the others rest on the CPU."""
        for name, network in self._networks.items():
            if name != wanted:
                network.rest()
        if self._found:
            (self._found.wake if wanted == SUPERNET else self._found.rest)()
        if wanted in self._networks:
            self._networks[wanted].wake()

    def _local(self, name: str, trainer: Trainer, rounds: int, architecture: str = "") -> LocalNetwork:
        ditto = None
        if self._job.personal.ditto:
            network = ready_network(trainer.job, self._device, architecture)
            stream, way = f"{trainer.stream} ditto", self._way if name == MAIN else None
            ditto = Trainer(trainer.job, self._data.training, self._device, stream, network, way)
            ditto.exchanged = ()  # all of it stays here
            ditto.after_step, ditto.team = self._after_step, self._team
        trainer.after_step, trainer.team = self._after_step, self._team
        state = self._state / name if self._state else None
        return LocalNetwork(self._job, trainer, self._data, rounds, state, ditto)

    def _finder(self) -> SiteSearch | SiteWidths:
        """What finds this site's own network."""
        if self._job.search.of_cells:
            return self._search()
        return SiteWidths(self._job, self._site, self._settings, self._data, self._device, self._team.size)

    def _search(self) -> SiteSearch:
        if self._found is None:
            state = self._state / SUPERNET if self._state else None
            number = self._rounds.get(SUPERNET, 0)
            self._found = SiteSearch(
                self._job, self._site, self._settings, self._data, self._device, state, number, self._after_step
            )
        return self._found
