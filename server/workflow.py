"""What the server of a job does, from the first question to the sites to the last test. Knows nothing of FLARE."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from fl_app.config import Job
from fl_app.errors import FederationError
from fl_app.messages import MAIN, TEST, TestReport, payload_bytes
from fl_app.model_file import load_model
from fl_app.networks import build_network, exchanged_names
from fl_app.result import Result
from server.channel import Channel, Payload, Values
from server.checkpoint import Checkpoints
from server.participants import Participants
from server.record import Record
from server.training import Standing, Training

_logger = logging.getLogger(__name__)


class Workflow:
    """Prepare, train round by round, keep the best model, have it tested.

    A job whose server was ended goes on after the last round that its checkpoints hold.

    Args:
        job: the job.
        folder: for ``result.json``, ``model/`` and ``checkpoints/``.
        channel: how the sites are reached.
    """

    def __init__(self, job: Job, folder: Path, channel: Channel) -> None:
        self.record = Record(folder / "result.json", job)
        self._job = job
        self._models = folder / "model"
        self._checkpoints = Checkpoints(folder / "checkpoints")
        self._sites = Participants(channel, job.federation)

    def run(self, invited: list[str]) -> None:
        """Run the whole job.

        Args:
            invited: the sites' names.

        Raises:
            FederationError: why it cannot go on; what was reached is saved.
        """
        network = build_network(self._job.network, len(self._job.data.labels), self._job.seed)
        standing = self._restore(Standing(dict(network.state_dict())))
        result = self.record.result
        exchanged = exchanged_names(network, self._job.federation.normalisation)
        result.parameters = sum(value.numel() for value in network.parameters())
        result.exchanged_bytes = payload_bytes({name: standing.values[name] for name in exchanged})
        self._sites.prepare(invited, {"round": standing.round}, self.record)
        training = Training(self._job, MAIN, standing, exchanged, self._sites, self.record.rounds, self._models)
        while standing.round < self._job.federation.rounds:
            training.train_round()
            self._save(standing)
        training.validate()
        self._test(training)
        self.record.finished()
        self._checkpoints.clear()

    def _restore(self, standing: Standing) -> Standing:
        """Where to go on from: the last checkpoint, or the untrained network."""
        found = self._checkpoints.load()
        if found is None:
            return standing
        values, facts, damaged = found
        earlier = Result.model_validate(facts["result"])
        if earlier.config != self.record.result.config:
            raise FederationError("the checkpoint is of a job with other settings - submit this one as a new job")
        self.record.resume(earlier, damaged)
        _logger.info(f"going on after round {facts['round']}")
        best = facts["best"]
        return Standing(values, int(facts["round"]), (int(best[0]), float(best[1])) if best else None)

    def _save(self, standing: Standing) -> None:
        result = self.record.result.model_dump(mode="json")
        self._checkpoints.save(standing.values, {"round": standing.round, "best": standing.best, "result": result})

    def _test(self, training: Training) -> None:
        best = training.standing.best
        if best is None:
            raise FederationError(
                f"no site reported {self._job.federation.best_metric}, so there is no best model - "
                "the organ must be in some validation case; the last model is saved"
            )
        values, info = load_model(self._models / "best.safetensors")
        reports: dict[str, TestReport] = {}

        def answer(site: str, received: Values, report: dict[str, Any]) -> str | None:
            tested = TestReport.model_validate(report)
            if set(tested.dice) != set(self._job.data.labels):
                return f"it tested {', '.join(sorted(tested.dice)) or 'nothing'}, not what the job's labels name"
            reports[site] = tested
            _logger.info(f"test of the model after round {info.round}: {site} {tested.dice}")
            return None

        shared = {name: values[name] for name in training.shared()}
        payload = Payload(shared, {"network": MAIN, "round": info.round})
        exchange = self._sites.ask(TEST, dict.fromkeys(self._sites.names, payload), answer)
        self.record.tested(info.round, best[1], reports, exchange.left_out)
        self._sites.require_quorum(exchange, "when the best model was tested")
