"""The models that a site could keep, and the one that it keeps: the best on its own validation cases.

A network never does harm here: the federated model as it is takes part in the comparison. A site with one or two
validation cases chooses among networks by little more than chance; so what all sites' cases say of a federated network
counts as two further cases for it and for what was made of it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from typing import Any

import torch

from clients.local import LocalNetwork
from fl_app.config import Job
from fl_app.data.site_data import SiteData
from fl_app.messages import MAIN, SEARCHED, PersonalModel, PersonalReport, Validation
from fl_app.model_file import ModelInfo, save_model
from fl_app.networks.found import is_part, read_found
from fl_app.result import software_versions, weighted_mean
from fl_app.site import SiteSettings
from fl_app.training.fitting import training_memory
from fl_app.training.reporting import case_file, test_report, validation_report, write_case_scores
from fl_app.training.trainer import Trainer, ready_network

Values = dict[str, torch.Tensor]
_logger = logging.getLogger(__name__)
_NAMES = {MAIN: "federated", SEARCHED: "searched"}
_OTHERS = 2  # cases of a site's own that the mean over all sites counts for


class _Candidates:
    """Scores models on the site's cases, and remembers the best one's weights.

    Attributes:
        models: by name.
        best: what the best is judged by, its name, its weights, its architecture as JSON and the job as it is trained
            here; none: there is no model.
    """

    def __init__(self, job: Job, settings: SiteSettings, data: SiteData) -> None:
        self.models: dict[str, PersonalModel] = {}
        self.best: tuple[float, str, Values, str, Job] | None = None
        self._job = job
        self._settings = settings
        self._data = data
        self._memory: dict[int, int] = {}

    def add(
        self,
        name: str,
        trainer: Trainer,
        validation: Validation,
        steps: int,
        architecture: str,
        federated: float | None,
    ) -> None:
        """Score a trainer's network as it stands.

        Args:
            name: of the model.
            trainer: with the network.
            validation: its scores on the validation cases.
            steps: that were taken for it beside the federation's.
            architecture: as JSON; empty: the job's own network.
            federated: the mean of all sites' scores of the federated network that it was made of; none: unknown.
        """
        started = time.monotonic()
        organs = tuple(self._job.data.labels)
        scores = trainer.score(self._data.test, native=True)
        if self._settings.output:
            write_case_scores(case_file(self._settings.output, name), scores)
        self.models[name] = PersonalModel(
            validation=validation,
            test=test_report(scores, organs, time.monotonic() - started),
            parameters=sum(value.numel() for value in trainer.network.parameters()),
            memory_bytes=self._measure(trainer),
            steps=steps,
        )
        value = validation.metrics[self._job.federation.best_metric]
        _logger.info(f"personal model {name}: validation {value}")
        judged = weighted_mean([(value, validation.cases), (federated, _OTHERS)])
        # the first one wins a tie: simpler models come first
        if self.best is None or (judged is not None and judged > self.best[0]):
            self.best = (-1.0 if judged is None else judged, name, trainer.all_values(), architecture, trainer.job)

    def _measure(self, trainer: Trainer) -> int:
        if id(trainer) not in self._memory:
            trainer.rest()
            self._memory[id(trainer)] = training_memory(trainer.network, trainer.job, trainer.device)
            trainer.wake()
        return self._memory[id(trainer)]


def make_personal_models(
    job: Job,
    site: str,
    settings: SiteSettings,
    data: SiteData,
    networks: Mapping[str, LocalNetwork],
    values: Values,
    facts: Mapping[str, Any],
) -> PersonalReport:
    """Score the federated models, fine-tune them, and keep the best; it is written to the site's own output folder.

    Args:
        job: the job.
        site: the site's name.
        settings: the site's.
        data: the site's cases.
        networks: what the site has trained in the federation.
        values: of the best federated models, each name preceded by the network's and a slash.
        facts: which networks these are, from which rounds, and the network for all that a search has found.
    """
    started = time.monotonic()
    found = _Candidates(job, settings, data)
    rounds = {network: int(told["round"]) for network, told in facts["networks"].items()}
    for network, number in rounds.items():
        local = networks[network]
        prefix = f"{network}/"
        shared = {name.removeprefix(prefix): value for name, value in values.items() if name.startswith(prefix)}
        for each in networks.values():
            each.rest()
        local.wake()
        local.load(shared, after=number)
        text, consensus = str(facts["networks"][network]["architecture"]), str(facts["consensus"])
        score = facts["networks"][network]["score"]
        # free: the site's own network need not hold the one for all
        if text and text != consensus and is_part(read_found(consensus, job), read_found(text, job)):
            _add_consensus(job, site, data, found, local.trainer, consensus, score)
        found.add(_NAMES[network], local.trainer, local.score(), 0, text, score)
        if job.personal.fine_tuning_steps:
            validation = _fine_tune(job, data, local)
            found.add(
                f"{_NAMES[network]} tuned", local.trainer, validation, job.personal.fine_tuning_steps, text, score
            )
        if local.ditto:
            federated = job.federation.rounds if network == MAIN else job.search.rounds
            local.restore_ditto(number)
            name = "ditto" if network == MAIN else f"{_NAMES[network]} ditto"
            validation = _validate(job, data, local.ditto)
            found.add(name, local.ditto, validation, job.training.steps_per_round * federated, text, score)
    assert found.best is not None  # the server asks only for models that there are
    _, chosen, weights, text, trained = found.best
    if settings.output:
        value = found.models[chosen].validation.metrics[job.federation.best_metric]
        metric = None if value is None else (job.federation.best_metric, value)
        number = rounds[SEARCHED if text else MAIN]
        # windows that this site's memory holds
        kept = job.model_copy(update={"evaluation": trained.evaluation})
        info = ModelInfo(kept, number, metric, software_versions(), (text,) if text else ())
        save_model(settings.output / "model.safetensors", weights, info)
    return PersonalReport(models=found.models, chosen=chosen, seconds=time.monotonic() - started)


def _add_consensus(
    job: Job, site: str, data: SiteData, found: _Candidates, larger: Trainer, consensus: str, score: float | None
) -> None:
    """The network for all, with the weights that the site's larger network trained along."""
    held = larger.all_values()
    larger.rest()
    network = ready_network(larger.job, larger.device, consensus)
    trainer = Trainer(larger.job, data.training, larger.device, f"{site} consensus", network)
    trainer.load({name: held[name] for name in trainer.all_values()})
    found.add("consensus", trainer, _validate(job, data, trainer), 0, consensus, score)
    trainer.rest()
    larger.wake()


def _fine_tune(job: Job, data: SiteData, local: LocalNetwork) -> Validation:
    """Train on, and leave in the trainer what scores best between the weights as they came and as they are then.

    Between the two lies what has learned the site's cases and not forgotten the others' (WiSE-FT: Wortsman et al.,
    CVPR 2022, section 3); a site with small patches or frozen weights needs it most.
    """
    metric, settings = job.federation.best_metric, job.personal
    local.rest()  # what the federation's optimiser remembers takes memory, too
    trainer = Trainer(
        tuning_job(local.trainer.job),
        data.training,
        local.trainer.device,
        f"{local.trainer.stream} tuned",
        local.trainer.network,
    )
    trainer.after_step, trainer.team = local.trainer.after_step, local.trainer.team
    came, best = trainer.all_values(), local.score()
    kept = came
    trainer.train(1, settings.fine_tuning_steps, 1)
    tuned = trainer.all_values()
    for share in sorted(settings.fine_tuning_shares):
        values = _between(came, tuned, share)
        trainer.load(values)
        validation = _validate(job, data, trainer)
        if (validation.metrics[metric] or 0.0) > (best.metrics[metric] or 0.0):
            best, kept = validation, values
    local.trainer.load(kept)
    return best


def tuning_job(job: Job) -> Job:
    """The job whose training is the fine-tuning of this one."""
    rate = job.training.learning_rate * job.personal.fine_tuning_rate
    training = job.training.model_copy(update={"learning_rate": rate, "schedule": "cosine"})
    federation = job.federation.model_copy(update={"algorithm": "fedavg"})
    return job.model_copy(update={"training": training, "federation": federation})


def _between(start: Values, end: Values, share: float) -> Values:
    """The weights at a share of the way; what is no fraction, such as a count of batches, as it is at the end."""
    return {name: start[name].lerp(value, share) if value.is_floating_point() else value for name, value in end.items()}


def _validate(job: Job, data: SiteData, trainer: Trainer) -> Validation:
    started = time.monotonic()
    scores = trainer.score(data.validation)
    return validation_report(scores, tuple(job.data.labels), time.monotonic() - started)
