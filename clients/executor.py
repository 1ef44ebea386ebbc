"""Answers the server's tasks at a site: prepare, train, validate, test."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import torch
from nvflare.apis.dxo import DXO, DataKind, from_shareable
from nvflare.apis.event_type import EventType
from nvflare.apis.executor import Executor
from nvflare.apis.fl_constant import ReturnCode
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable, make_reply
from nvflare.apis.signal import Signal
from nvflare.app_opt.pt.decomposers import TensorDecomposer
from nvflare.fuel.utils import fobs

from clients.bell import Bell
from clients.failures import classify
from fl_app.config import Job
from fl_app.data.site_data import load_site_data
from fl_app.messages import (
    PREPARE,
    TEST,
    TRAIN,
    VALIDATE,
    SiteReady,
    TestReport,
    TrainReport,
    Validation,
    ValidationReport,
)
from fl_app.result import software_versions
from fl_app.site import SiteSettings, load_site
from fl_app.training.device import choose_device
from fl_app.training.reporting import test_report, validation_report, write_case_scores
from fl_app.training.trainer import Trainer

Values = dict[str, torch.Tensor]


class SiteExecutor(Executor):
    """One site's part in a job. Lives as long as the job, so data and optimiser stay in memory between rounds.

    Args:
        job: a job as plain data, as `Job` writes and reads it.
    """

    def __init__(self, job: dict[str, Any]) -> None:
        super().__init__()
        self.job = job  # FLARE exports a component's arguments from attributes of the same name
        self._job = Job.model_validate(job)
        self._bell = Bell()
        self._tasks: dict[str, Callable[[Values, dict[str, Any]], tuple[Values, Any]]] = {
            PREPARE: self._prepare,
            TRAIN: self._train,
            VALIDATE: self._validate,
            TEST: self._test,
        }
        # values that stay here (FedBN), as they were after each round: the best round is known only at the end
        self._local_values: dict[int, Values] = {}
        self._scored: tuple[Values, Validation] | None = None

    def handle_event(self, event_type: str, fl_ctx: FLContext) -> None:
        """FLARE's events: tensors can travel once the run has started; the bell tells when to ask for a task."""
        self._bell.handle_event(event_type, fl_ctx)
        if event_type == EventType.START_RUN:
            fobs.register(TensorDecomposer)

    def execute(self, task_name: str, shareable: Shareable, fl_ctx: FLContext, abort_signal: Signal) -> Shareable:
        """Do one task; a failure is told to the server by its kind only, the details stay in this site's log."""
        try:
            self._site = fl_ctx.get_identity_name()
            if task_name not in self._tasks:
                return make_reply(ReturnCode.TASK_UNKNOWN)
            dxo = from_shareable(shareable)
            values, report = self._tasks[task_name](dxo.data, dxo.meta)
            return DXO(DataKind.WEIGHT_DIFF, data=values, meta={"report": report.model_dump()}).to_shareable()
        except Exception as error:  # whatever happens: the server gets an answer, the log the cause
            failure = classify(error)
            self.logger.error(f"{task_name} failed ({failure.kind}): {error}", exc_info=failure.kind == "internal")
            return make_reply(ReturnCode.EXECUTION_EXCEPTION, {"failure": failure.kind})

    def _prepare(self, values: Values, facts: dict[str, Any]) -> tuple[Values, SiteReady]:
        started = time.monotonic()
        self._settings: SiteSettings = load_site(self._site)
        if self._settings.threads:
            torch.set_num_threads(self._settings.threads)
        device = choose_device(self._settings.device)
        self._data = load_site_data(
            self._settings.data, self._job.data, self._job.seed, self._settings.cache, self._settings.cases
        )
        self._trainer = Trainer(self._job, self._data.training, device, self._site)
        self._local_values[0] = self._trainer.local_values()
        return {}, SiteReady(
            training_cases=len(self._data.training),
            validation_cases=len(self._data.validation),
            test_cases=len(self._data.test),
            warnings=len(self._data.warnings),
            device=torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
            precision=self._trainer.precision.name,
            versions=software_versions(),
            seconds=time.monotonic() - started,
        )

    def _train(self, values: Values, facts: dict[str, Any]) -> tuple[Values, TrainReport]:
        number = int(facts["round"])
        self._trainer.load(values)
        received = self._score()
        settings = self._job.training
        trained = self._trainer.train(number, settings.steps_per_round, self._job.federation.rounds)
        self._local_values[number] = self._trainer.local_values()
        now = self._trainer.shared_values()
        self.logger.info(f"round {number}: received model {received.metrics}, then {trained}")
        report = TrainReport(
            round=number,
            loss=None if math.isnan(trained.loss) else trained.loss,
            steps=trained.steps,
            training_cases=len(self._data.training),
            training_seconds=trained.seconds,
            received=received,
        )
        return {name: now[name] - values[name] for name in now}, report

    def _validate(self, values: Values, facts: dict[str, Any]) -> tuple[Values, ValidationReport]:
        self._trainer.load(values)
        return {}, ValidationReport(received=self._score())

    def _test(self, values: Values, facts: dict[str, Any]) -> tuple[Values, TestReport]:
        started = time.monotonic()
        self._trainer.load(self._local_values[int(facts["round"])] | values)
        scores = self._trainer.score(self._data.test, native=True)
        if self._settings.output:
            write_case_scores(self._settings.output / "test_cases.csv", scores)
        self.logger.info(f"test of the model after round {facts['round']}: {scores}")
        return {}, test_report(scores, tuple(self._job.data.labels), time.monotonic() - started)

    def _score(self) -> Validation:
        """Score the network as it stands on the validation cases; what has not changed is not scored again."""
        started = time.monotonic()
        now = self._trainer.all_values()
        if self._scored and all(torch.equal(now[name], self._scored[0][name]) for name in now):
            return self._scored[1].model_copy(update={"seconds": time.monotonic() - started})
        scores = self._trainer.score(self._data.validation)
        report = validation_report(scores, tuple(self._job.data.labels), time.monotonic() - started)
        self._scored = now, report
        return report
