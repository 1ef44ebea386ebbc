"""The last exchange: each site makes its personal models, keeps the best, and tells how good they are."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

from fl_app.config import Job
from fl_app.messages import MAIN, PERSONALISE, SEARCHED, PersonalReport
from fl_app.model_file import load_model
from fl_app.result import KeptModel, Personal, PersonalSite, site_scores
from server.channel import Payload, Values
from server.participants import Participants
from server.record import Record
from server.training import Training


def personalise(
    job: Job, sites: Participants, record: Record, models: Path, main: Training | None, searched: Training | None
) -> None:
    """Send every site the best federated models; write down what it makes of them.

    Raises:
        FederationError: too few sites answered.
    """
    reports: dict[str, PersonalReport] = {}

    def answer(site: str, values: Values, report: dict[str, Any]) -> str | None:
        told = PersonalReport.model_validate(report)
        organs = set(job.data.labels)
        if any(set(model.test.dice) != organs for model in told.models.values()):
            return "it tested something else than what the job's labels name"
        reports[site] = told
        return None

    consensus = record.result.search.consensus if record.result.search else None
    payloads: dict[str, Payload] = {}
    networks: dict[str, dict[str, dict[str, Any]]] = defaultdict(dict)
    for network, training, folder in ((MAIN, main, models), (SEARCHED, searched, models / "searched")):
        if training is None:
            continue
        best, info = load_model(folder / "best.safetensors")
        for site in training.plan.held:
            payload = payloads.setdefault(site, Payload({}, {"networks": networks[site], "consensus": consensus}))
            payload.values.update({f"{network}/{name}": best[name] for name in training.sent_names(site)})
            # of two sites each would know the other's
            score = info.score if len(training.plan.held) > 2 else None
            networks[site][network] = {**training.about(site), "round": info.round, "score": score}
    exchange = sites.ask(PERSONALISE, payloads, answer)
    record.result.personal = Personal(
        sites={site: _site(report) for site, report in sorted(reports.items())}, left_out=dict(exchange.left_out)
    )
    personal = record.result.personal
    dice = [kept.models[kept.chosen].scores.dice for kept in personal.sites.values()]
    known = [each for each in dice if each is not None]
    if known:
        personal.mean_dice, personal.worst_dice = sum(known) / len(known), min(known)
    record.save()
    sites.require_quorum(exchange, "when the personal models were made")


def _site(report: PersonalReport) -> PersonalSite:
    models = {
        name: KeptModel(
            validation_dice=model.validation.metrics.get("val_dice"),
            scores=site_scores(model.test),
            parameters=model.parameters,
            memory_bytes=model.memory_bytes,
            steps=model.steps,
        )
        for name, model in report.models.items()
    }
    return PersonalSite(chosen=report.chosen, models=models)
