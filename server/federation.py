"""The server's workflow: ask the sites to prepare, train round by round, keep the best model, have it tested."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from nvflare.apis.controller_spec import ClientTask, Task
from nvflare.apis.dxo import DXO, DataKind, from_shareable
from nvflare.apis.fl_constant import ReturnCode
from nvflare.apis.fl_context import FLContext
from nvflare.apis.impl.controller import Controller
from nvflare.apis.shareable import Shareable
from nvflare.apis.signal import Signal
from nvflare.app_opt.pt.decomposers import TensorDecomposer
from nvflare.fuel.utils import fobs
from nvflare.widgets.info_collector import InfoCollector

from fl_app.config import Job
from fl_app.errors import FederationError, UserError
from fl_app.messages import (
    BELL_TOPIC,
    PREPARE,
    PROGRESS,
    TEST,
    TRAIN,
    VALIDATE,
    SiteFailure,
    SiteReady,
    TestReport,
    TrainReport,
    Validation,
    ValidationReport,
    payload_bytes,
)
from fl_app.model_file import ModelInfo, load_model, save_model
from fl_app.networks import build_network, exchanged_names
from fl_app.versions import incompatibility
from server.aggregation import WeightedMean
from server.exchange import Exchange
from server.record import Record

Values = dict[str, torch.Tensor]
Answer = Callable[[str, Values, dict[str, Any]], str | None]
_POLL_SECONDS = 0.05


class Federation(Controller):
    """FedAvg, FedProx and FedBN: what differs between them happens at the sites.

    Args:
        job: a job as plain data, as `Job` writes and reads it.
    """

    def __init__(self, job: dict[str, Any]) -> None:
        super().__init__(task_check_period=_POLL_SECONDS)
        self.job = job  # FLARE exports a component's arguments from attributes of the same name
        self._job = Job.model_validate(job)
        self._news = threading.Event()

    def start_controller(self, fl_ctx: FLContext) -> None:
        """Find where to write; build the untrained model."""
        fobs.register(TensorDecomposer)
        folder = Path(fl_ctx.get_engine().get_workspace().get_run_dir(fl_ctx.get_job_id())) / "result"
        self._models = folder / "model"
        self._record = Record(folder / "result.json", self._job)
        network = build_network(self._job)
        self._values: Values = dict(network.state_dict())
        self._exchanged = exchanged_names(network, self._job.federation.normalisation)
        self._best: tuple[int, float] | None = None
        self._record.result.parameters = sum(value.numel() for value in network.parameters())
        self._record.result.exchanged_bytes = payload_bytes(self._shared())

    def handle_event(self, event_type: str, fl_ctx: FLContext) -> None:
        """An administrator's show_stats: answer with the result so far, which `fedspleen follow` prints."""
        super().handle_event(event_type, fl_ctx)
        if event_type == InfoCollector.EVENT_TYPE_GET_STATS:
            collector = fl_ctx.get_prop(InfoCollector.CTX_KEY_STATS_COLLECTOR)
            # from the file: it is whole at any time, the object may just be changing
            if collector and self._record.path.exists():
                collector.set_info(PROGRESS, {"result": self._record.path.read_text()})

    def control_flow(self, abort_signal: Signal, fl_ctx: FLContext) -> None:
        """Run the whole job; a failure is written down before FLARE is told."""
        self._abort, self._context = abort_signal, fl_ctx
        try:
            self._run([client.name for client in fl_ctx.get_engine().get_clients()])
            self._record.finished()
        except UserError as error:
            self._record.failed(str(error))
            self.system_panic(str(error), fl_ctx)
        except Exception as error:
            self._record.failed(f"unexpected error at the server: {type(error).__name__}; its log has the details")
            raise

    def stop_controller(self, fl_ctx: FLContext) -> None:
        """Nothing to release."""

    def process_result_of_unknown_task(self, *args: Any, **kwargs: Any) -> None:
        """An answer that comes after its round is over does not count."""
        self.logger.warning("a site answered after its round was over; the answer is left out")

    def _run(self, sites: list[str]) -> None:
        sites = self._prepare(sorted(sites))
        for number in range(1, self._job.federation.rounds + 1):
            self._train(number, sites)
        self._validate(sites)
        self._test(sites)

    def _prepare(self, sites: list[str]) -> list[str]:
        ready: dict[str, SiteReady] = {}

        def answer(site: str, values: Values, report: dict[str, Any]) -> str | None:
            # first of all: another version's report may look different
            refusal = incompatibility(str(report.get("versions", {}).get("fedspleen", "")))
            if refusal:
                return refusal
            ready[site] = SiteReady.model_validate(report)
            self._record.site_ready(site, ready[site])
            return None

        exchange = self._exchange(PREPARE, sites, {}, {}, answer)
        self._record.result.refused = dict(exchange.left_out)
        self._require_quorum(exchange, "before the first round")
        self._training_cases = {site: ready[site].training_cases for site in exchange.good}
        return sorted(exchange.good)

    def _train(self, number: int, sites: Sequence[str]) -> None:
        started = time.monotonic()
        shared = self._shared()
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
            self._record.site_trained(site, trained, payload_bytes(shared), payload_bytes(values))
            self.logger.info(f"round {number}: {site} loss {trained.loss}, {trained.steps} steps, weight {weight}")
            return None

        self._record.round_started(number)
        exchange = self._exchange(TRAIN, sites, shared, {"round": number}, answer)
        self._choose(number - 1, scores)
        self._require_quorum(exchange, f"in round {number}")
        self._values |= mean.apply()
        self._save("last", number, None)
        self._record.round_finished(time.monotonic() - started, dict(sorted(weights.items())), exchange.left_out)

    def _weight(self, site: str, report: TrainReport) -> int:
        rule = self._job.federation.weight_by
        # the cases that the site declared before the first round count, not what it says now
        return {"cases": self._training_cases[site], "steps": report.steps, "equal": 1}[rule]

    def _validate(self, sites: Sequence[str]) -> None:
        scores: dict[str, Validation] = {}

        def answer(site: str, values: Values, report: dict[str, Any]) -> str | None:
            scores[site] = ValidationReport.model_validate(report).received
            return None

        number = self._job.federation.rounds
        exchange = self._exchange(VALIDATE, sites, self._shared(), {"round": number}, answer)
        self._choose(number, scores)
        self._require_quorum(exchange, "when the last model was validated")

    def _test(self, sites: Sequence[str]) -> None:
        if self._best is None:
            raise FederationError(
                f"no site reported {self._job.federation.best_metric}, so there is no best model - "
                "the organ must be in some validation case; the last model is saved"
            )
        values, info = load_model(self._models / "best.safetensors")
        reports: dict[str, TestReport] = {}

        def answer(site: str, values: Values, report: dict[str, Any]) -> str | None:
            tested = TestReport.model_validate(report)
            if set(tested.dice) != set(self._job.data.labels):
                return f"it tested {', '.join(sorted(tested.dice)) or 'nothing'}, not what the job's labels name"
            reports[site] = tested
            self.logger.info(f"test of the model after round {info.round}: {site} {tested.dice}")
            return None

        shared = {name: values[name] for name in self._exchanged}
        exchange = self._exchange(TEST, sites, shared, {"round": info.round}, answer)
        self._record.tested(info.round, self._best[1], reports, exchange.left_out)
        self._require_quorum(exchange, "when the best model was tested")

    def _choose(self, number: int, scores: dict[str, Validation]) -> None:
        """Keep the current model, which is the one after round ``number``, if it is the best trained one so far."""
        value = self._record.model_validated(number, dict(sorted(scores.items())))
        told = ", ".join(f"{site} {validation.metrics}" for site, validation in sorted(scores.items()))
        self.logger.info(f"model after round {number}: {self._job.federation.best_metric} {value} ({told})")
        if number and value is not None and (self._best is None or value > self._best[1]):
            self._best = (number, value)
            self._save("best", number, (self._job.federation.best_metric, value))

    def _save(self, name: str, number: int, metric: tuple[str, float] | None) -> None:
        info = ModelInfo(self._job, number, metric, self._record.result.versions)
        save_model(self._models / f"{name}.safetensors", self._values, info)

    def _shared(self) -> Values:
        return {name: self._values[name] for name in self._exchanged}

    def _require_quorum(self, exchange: Exchange, when: str) -> None:
        if not exchange.reached_quorum:
            reasons = "; ".join(f"{site}: {reason}" for site, reason in sorted(exchange.left_out.items()))
            raise FederationError(
                f"{len(exchange.good)} of {len(exchange.sites)} sites could take part {when}, "
                f"{exchange.quorum} are needed (federation.min_sites). {reasons}"
            )

    def _exchange(
        self, task_name: str, sites: Sequence[str], values: Values, facts: dict[str, Any], answer: Answer
    ) -> Exchange:
        """Send a task to the sites and take their answers as they come, until the exchange is over."""
        settings = self._job.federation
        exchange = Exchange(
            sites,
            settings.min_sites or len(sites),
            settings.round_time_limit_s,
            settings.grace_s,
            patient=task_name == PREPARE,
        )

        def received(client_task: ClientTask, fl_ctx: FLContext) -> None:
            site, reply = client_task.client.name, client_task.result
            client_task.result = None  # FLARE would keep every site's tensors until the round ends
            with exchange.lock:
                if not exchange.closed:
                    reason = self._read(site, reply, answer)
                    if reason:
                        self.logger.warning(f"{task_name}: {site} is left out: {reason}")
                        exchange.leave_out(site, reason)
                    else:
                        exchange.accept(site)
            self._news.set()

        data = DXO(DataKind.WEIGHTS, data=values, meta=facts).to_shareable()
        task = Task(name=task_name, data=data, timeout=0, result_received_cb=received)
        self.broadcast(task, self._context, targets=list(sites), min_responses=0)
        self._ring(sites)
        while not exchange.is_over():
            if self._abort.triggered:
                raise FederationError("the job was aborted")
            self._news.wait(_POLL_SECONDS)
            self._news.clear()
        with exchange.lock:
            exchange.close()
        self.cancel_task(task, fl_ctx=self._context)
        return exchange

    def _ring(self, sites: Sequence[str]) -> None:
        """Tell the sites to ask for their task now; who does not hear it asks a little later."""
        engine = self._context.get_engine()
        engine.fire_and_forget_aux_request(list(sites), BELL_TOPIC, Shareable(), self._context, optional=True)

    def _read(self, site: str, reply: Shareable, answer: Answer) -> str | None:
        """Take a site's answer; the reason why it cannot be used, or none."""
        try:
            if reply.get_return_code() != ReturnCode.OK:
                kind = reply.get_header("failure", "internal")
                return SiteFailure(kind=kind).sentence
            dxo = from_shareable(reply)
            return answer(site, dxo.data, dxo.meta.get("report", {}))
        except Exception as error:  # whatever a site sends, it must not end the job of the others
            self.logger.warning(f"{site} sent what cannot be read", exc_info=True)
            return f"its answer does not follow the contract: {(str(error) or type(error).__name__).splitlines()[0]}"
