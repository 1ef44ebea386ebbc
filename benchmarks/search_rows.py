"""The rows of `benchmarks.architecture_search`: the jobs that they run, and what came out."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from benchmarks.plain_tuning import TO_THE_END, tune_to_the_end
from benchmarks.steps import CPU, QUICK, steps_of
from benchmarks.timing import in_turns
from fl_app.baselines import train_baseline
from fl_app.config import Job
from fl_app.config_file import load_job
from fl_app.messages import Saving
from fl_app.rehearsal import rehearse
from fl_app.result import Result, SearchResult
from fl_app.site import SiteSettings
from fl_app.training.cost import forward_flops
from fl_app.training.fitting import fit_training, training_memory, with_training
from fl_app.training.reporting import case_file
from fl_app.training.trainer import ready_network

HALF = (8, 16, 32, 64)  # half the channels of the quick job's U-Net
SEGRESNET = (8, 16)  # has as many parameters as that U-Net, and three times its operations
_TIMED_STEPS = 3


class Run(BaseModel):
    """What one run came to, by site and model."""

    name: str
    seed: int
    seconds: float
    budgets: dict[str, int]
    models: dict[str, dict[str, dict[str, Any]]]
    bytes_sent: int = 0
    upload_share: float | None = None  # of the supernet, that a site sends in a round of the search
    search: dict[str, Any] | None = None


def base_job(seed: int, rounds: int, steps: int, tuning: int) -> Job:
    """The quick job, for as many rounds and steps."""
    return load_job(
        QUICK,
        {
            ("seed",): seed,
            ("federation", "rounds"): rounds,
            ("training", "steps_per_round"): steps,
            ("personal", "fine_tuning_steps"): tuning,
        },
    )


def recomputing(job: Job) -> Job:
    """The same job, all sites computing activations again."""
    return with_training(job, recompute=True)


def whole_in(job: Job) -> Job:
    """The same job, in which a site leaves no weights to others, since there are none."""
    return with_training(job, most_frozen_share=0.0)


def with_ditto(job: Job) -> Job:
    """The same job, each site training a model of its own beside the federated one."""
    return job.model_copy(update={"personal": job.personal.model_copy(update={"ditto": 0.1})})


def with_network(job: Job, **network: Any) -> Job:
    """The same job with another network."""
    return Job.model_validate({**job.model_dump(), "network": network})


def searching(job: Job, share: float, **search: Any) -> Job:
    """The same job with a search; its own network is left to the other rows, its steps are the search's.

    Args:
        job: the job.
        share: of the steps, that the supernet takes.
        search: other settings of the search.
    """
    rounds = max(1, round(job.federation.rounds * share))
    described = job.model_dump()
    described["search"] |= {
        "strategy": "sampling",
        "supernet_rounds": rounds,
        "supernet_steps": job.training.steps_per_round,
        "rounds": job.federation.rounds - rounds,
        **search,
    }
    described["federation"]["rounds"] = 1
    return Job.model_validate(described)


def widths(job: Job) -> Job:
    """The same job, each site training its network as wide as fits; nothing is searched, so no steps go there."""
    described = job.model_dump()
    described["search"] |= {"strategy": "width", "rounds": job.federation.rounds}
    described["federation"]["rounds"] = 0
    return Job.model_validate(described)


def unet_memory(job: Job) -> int:
    """Bytes that training the job's own network takes at its peak."""
    return training_memory(ready_network(job, CPU), job, CPU)


class Costs:
    """What the models of a finished job cost.

    Args:
        job: the job.
        result: its result; none: of a training without federation.
    """

    def __init__(self, job: Job, result: Result | None = None) -> None:
        self._job, self._result = job, result
        self._known: dict[tuple[str, Saving], dict[str, float]] = {}

    def of(self, site: str, model: str) -> dict[str, float]:
        """A model's cost at a site: ``operations`` of a forward pass of the job's patch (a multiply-add counted as
        two), and ``step``: the time of a training step as a share of the quick job's, whose U-Net saves no memory.
        """
        architecture, saving = "", Saving()
        if self._result and self._result.search and (model.startswith("searched") or model == "consensus"):
            found = self._result.search.sites[site]
            architecture, saving = found.architecture, found.saving
            if model == "consensus":
                architecture = str(self._result.search.consensus)
        elif self._result:
            saving = self._result.sites[site].saving
        return self.trained(architecture, saving)

    def trained(self, architecture: str, saving: Saving) -> dict[str, float]:
        """The same of a network that is trained in a way that saves memory; measured once."""
        key = (architecture, saving)
        if key not in self._known:
            self._known[key] = self._measure(architecture, saving)
        return self._known[key]

    def _measure(self, architecture: str, saving: Saving) -> dict[str, float]:
        own = with_training(self._job, **saving.model_dump(exclude={"window_voxels"}))
        steps = {"plain": steps_of(load_job(QUICK)), "own": steps_of(own, architecture)}
        seconds = in_turns({name: each.step for name, each in steps.items()}, _TIMED_STEPS)
        share = statistics.median(seconds["own"]) / statistics.median(seconds["plain"])
        operations = forward_flops(ready_network(self._job, CPU, architecture), self._job.data.patch_voxels)
        return {"operations": operations, "step": share}


def upload_share(search: SearchResult) -> float:
    """Mean of what a site sends in a round of the search, as a share of the supernet."""
    sent = [site.bytes_sent for each in search.supernet_rounds for site in each.sites.values()]
    return sum(sent) / len(sent) / search.supernet_bytes


@dataclass(frozen=True)
class Row:
    """One row of one seed.

    Attributes:
        name: the row's.
        job: the U-Net's.
        sites: the sites.
        budgets: bytes, by site.
        folder: for what the run leaves.
        share: of the steps of a search, that its supernet takes.
    """

    name: str
    job: Job
    sites: dict[str, SiteSettings]
    budgets: dict[str, int]
    folder: Path
    share: float

    def federated(self, job: Job, keep: bool = False) -> Run:
        """Rehearse a job; its sites' personal models.

        Args:
            job: the job.
            keep: whether the sites keep to their budgets; with a search they do.
        """
        started = time.monotonic()
        keep = keep or job.search.wanted
        own = {
            site: settings.model_copy(
                update={
                    "output": self.folder / site,
                    "memory_budget_gib": self.budgets[site] / 2**30 if keep else None,
                }
            )
            for site, settings in self.sites.items()
        }
        result = rehearse(job, own, self.folder / "result")
        seconds = time.monotonic() - started
        assert result.personal is not None
        rounds = [*result.rounds, *(result.search.supernet_rounds + result.search.rounds if result.search else [])]
        costs = Costs(job, result)
        models: dict[str, dict[str, dict[str, Any]]] = {
            site: {model: each.model_dump() | {"cost": costs.of(site, model)} for model, each in kept.models.items()}
            | {"chosen": {"name": kept.chosen}}
            for site, kept in result.personal.sites.items()
        }
        if self.name == "unet":  # the row to beat
            tuned = tune_to_the_end(job, self.folder / "result" / "model" / "best.safetensors", own)
            for site, scores in tuned.items():
                models[site][TO_THE_END] = models[site]["federated tuned"] | scores
        return Run(
            name=self.name,
            seed=job.seed,
            seconds=seconds,
            budgets=self.budgets,
            models=models,
            bytes_sent=sum(site.bytes_sent for each in rounds for site in each.sites.values()),
            upload_share=upload_share(result.search) if result.search and result.search.supernet_rounds else None,
            search=result.search.model_dump(exclude={"supernet_rounds", "rounds"}) if result.search else None,
        )

    def searched(self, **search: Any) -> Run:
        """The job with a search of cells."""
        return self.federated(searching(self.job, self.share, **search))

    def alone(self, together: bool, keep: bool = False) -> Run:
        """Train without federation.

        Args:
            together: all cases in one place; else each site for itself.
            keep: whether each site keeps to its budget, with all weights trained.
        """
        parameters = sum(each.numel() for each in ready_network(self.job, CPU).parameters())
        steps, seconds, costs = self.job.training.steps_per_round, 0.0, Costs(self.job)
        models: dict[str, dict[str, dict[str, Any]]] = {}
        groups = [list(self.sites)] if together else [[site] for site in self.sites]
        for group in groups:
            fit = fit_training(whole_in(self.job), CPU, self.budgets[group[0]] if keep else math.inf)
            cost = costs.trained("", fit.saving)
            started = time.monotonic()
            files = {site: case_file(self.folder / site, self.name) for site in group}
            baseline = train_baseline(fit.job, group, self.sites, steps * len(group), case_files=files)
            seconds += time.monotonic() - started
            for site in group:
                models[site] = {
                    self.name: {
                        "scores": baseline.sites[site].model_dump(),
                        "memory_bytes": fit.memory_bytes,
                        "parameters": parameters,
                        "cost": cost,
                    }
                }
        return Run(name=self.name, seed=self.job.seed, seconds=seconds, budgets=self.budgets, models=models)


ROWS: Mapping[str, Callable[[Row], Run]] = {
    "unet": lambda row: row.federated(row.job),
    "unet in budget": lambda row: row.federated(recomputing(row.job), keep=True),
    "unet half in budget": lambda row: row.federated(recomputing(with_network(row.job, channels=HALF)), keep=True),
    "search width": lambda row: row.federated(widths(recomputing(row.job))),
    "search width half": lambda row: row.federated(widths(with_network(row.job, channels=HALF))),
    "search nested": lambda row: row.searched(mode="nested"),
    "search random": lambda row: row.searched(mode="nested", strategy="random"),
    "search consensus": lambda row: row.searched(mode="consensus"),
    "search free": lambda row: row.searched(mode="free"),
    "local": lambda row: row.alone(together=False),
    "local in budget": lambda row: row.alone(together=False, keep=True),
    "centralised": lambda row: row.alone(together=True),
    "ditto": lambda row: row.federated(with_ditto(row.job)),
    "segresnet": lambda row: row.federated(with_network(row.job, name="segresnet", channels=SEGRESNET)),
    "segresnet half": lambda row: row.federated(with_network(row.job, name="segresnet", channels=(4, 8))),
    "dynunet": lambda row: row.federated(with_network(row.job, name="dynunet", size="small")),
    "dynunet tiny": lambda row: row.federated(with_network(row.job, name="dynunet", size="tiny")),
}
