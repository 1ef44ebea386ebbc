"""A site's part in a job: prepare, train, validate, test. Knows nothing of FLARE."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from clients.state import SiteState
from fl_app.config import Job
from fl_app.data.site_data import load_site_data
from fl_app.errors import PolicyError
from fl_app.messages import (
    PREPARE,
    TEST,
    TRAIN,
    VALIDATE,
    Report,
    SiteReady,
    TestReport,
    TrainReport,
    Validation,
    ValidationReport,
)
from fl_app.result import software_versions
from fl_app.site import SiteSettings
from fl_app.site_limits import refusals
from fl_app.training.device import choose_device
from fl_app.training.reporting import test_report, validation_report, write_case_scores
from fl_app.training.trainer import Trainer

Values = dict[str, torch.Tensor]
_logger = logging.getLogger(__name__)


class SiteWork:
    """Answers the server's tasks. Lives as long as the job, so data and optimiser stay in memory between rounds.

    Args:
        job: the job.
        site: the site's name.
        settings: what the site decides for itself.
        state: folder for what a restart in mid-job needs; none: nothing is kept.
    """

    def __init__(self, job: Job, site: str, settings: SiteSettings, state: Path | None = None) -> None:
        self._job = job
        self._site = site
        self._settings = settings
        self._state = SiteState(state)
        self._tasks: dict[str, Callable[[Values, Mapping[str, Any]], tuple[Values, Report]]] = {
            PREPARE: self._prepare,
            TRAIN: self._train,
            VALIDATE: self._validate,
            TEST: self._test,
        }
        self._scored: Validation | None = None  # of the network as it stands

    def do(self, task: str, values: Values, facts: Mapping[str, Any]) -> tuple[Values, Report]:
        """Do one task: tensors and plain facts in, tensors and a report out.

        Raises:
            Exception: whatever went wrong; `clients.failures.classify` says what the server may hear of it.
        """
        return self._tasks[task](values, facts)

    def _prepare(self, values: Values, facts: Mapping[str, Any]) -> tuple[Values, SiteReady]:
        started = time.monotonic()
        if self._settings.threads:
            torch.set_num_threads(self._settings.threads)
        device = choose_device(self._settings.device)
        self._data = load_site_data(
            self._settings.data, self._job.data, self._job.seed, self._settings.cache, self._settings.cases
        )
        forbidden = refusals(self._job, self._settings, len(self._data.training))
        if forbidden:
            raise PolicyError("; ".join(forbidden))
        self._trainer = Trainer(self._job, self._data.training, device, self._site)
        restored = self._state.restore(self._trainer, int(facts.get("round", 0)))
        return {}, SiteReady(
            training_cases=len(self._data.training),
            validation_cases=len(self._data.validation),
            test_cases=len(self._data.test),
            warnings=len(self._data.warnings),
            device=torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
            precision=self._trainer.precision.name,
            versions=software_versions(),
            restored=restored,
            seconds=time.monotonic() - started,
        )

    def _train(self, values: Values, facts: Mapping[str, Any]) -> tuple[Values, TrainReport]:
        number = int(facts["round"])
        self._load(values)
        received = self._score()
        steps = self._job.training.steps_per_round
        trained = self._trainer.train(number, steps, self._job.federation.rounds)
        if steps:
            self._scored = None
        self._state.keep(self._trainer, number, int(facts["best_round"]))
        now = self._trainer.shared_values()
        _logger.info(f"round {number}: received model {received.metrics}, then {trained}")
        report = TrainReport(
            round=number,
            loss=None if math.isnan(trained.loss) else trained.loss,
            steps=trained.steps,
            training_cases=len(self._data.training),
            training_seconds=trained.seconds,
            received=received,
        )
        return {name: now[name] - values[name] for name in now}, report

    def _validate(self, values: Values, facts: Mapping[str, Any]) -> tuple[Values, ValidationReport]:
        self._load(values)
        return {}, ValidationReport(received=self._score())

    def _test(self, values: Values, facts: Mapping[str, Any]) -> tuple[Values, TestReport]:
        started = time.monotonic()
        self._load(self._state.local_values(int(facts["round"])) | values)
        scores = self._trainer.score(self._data.test, native=True)
        if self._settings.output:
            write_case_scores(self._settings.output / "test_cases.csv", scores)
        _logger.info(f"test of the model after round {facts['round']}: {scores}")
        return {}, test_report(scores, tuple(self._job.data.labels), time.monotonic() - started)

    def _load(self, values: Values) -> None:
        if not self._trainer.holds(values):
            self._trainer.load(values)
            self._scored = None

    def _score(self) -> Validation:
        """Score the network on the validation cases; what has not changed is not scored again."""
        started = time.monotonic()
        if self._scored is None:
            scores = self._trainer.score(self._data.validation)
            self._scored = validation_report(scores, tuple(self._job.data.labels), 0.0)
        return self._scored.model_copy(update={"seconds": time.monotonic() - started})
