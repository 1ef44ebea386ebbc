"""The rows of `benchmarks.architecture_search`: the jobs that they run, and what came out."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel

from benchmarks.timing import in_turns
from fl_app.baselines import train_baseline
from fl_app.config import Job
from fl_app.config_file import load_job
from fl_app.messages import Saving
from fl_app.rehearsal import rehearse
from fl_app.result import Result, SearchResult
from fl_app.site import SiteSettings
from fl_app.training.cost import RandomSteps, forward_flops
from fl_app.training.fitting import training_memory
from fl_app.training.precision import choose_precision
from fl_app.training.trainer import ready_network

HALF = (8, 16, 32, 64)  # half the channels of the quick job's U-Net
SEGRESNET = (8, 16)  # has as many parameters as that U-Net
QUICK = Path(__file__).parents[1] / "fl_app" / "jobs" / "quick.yaml"
CPU = torch.device("cpu")
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
    return job.model_copy(update={"training": job.training.model_copy(update={"recompute": True})})


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
    described["federation"]["rounds"] = 1
    return Job.model_validate(described)


def unet_memory(job: Job) -> int:
    """Bytes that training the job's own network takes at its peak."""
    return training_memory(ready_network(job, CPU), job, CPU)


def federated(
    name: str, job: Job, sites: dict[str, SiteSettings], out: Path, budgets: dict[str, int], keep: bool = False
) -> Run:
    """Rehearse a job; its sites' personal models.

    Args:
        name: of the run.
        job: the job.
        sites: the sites.
        out: folder for the result.
        budgets: bytes, by site.
        keep: whether the sites keep to them; with a search they do.
    """
    started = time.monotonic()
    own = {
        site: settings.model_copy(
            update={
                "output": out / site,
                "memory_budget_gib": budgets[site] / 2**30 if keep or job.search.wanted else None,
            }
        )
        for site, settings in sites.items()
    }
    result = rehearse(job, own, out / "result")
    seconds = time.monotonic() - started
    assert result.personal is not None
    rounds = [*result.rounds, *(result.search.supernet_rounds + result.search.rounds if result.search else [])]
    costs = Costs(job, result)
    return Run(
        name=name,
        seed=job.seed,
        seconds=seconds,
        budgets=budgets,
        models={
            site: {model: each.model_dump() | {"cost": costs.of(site, model)} for model, each in kept.models.items()}
            | {"chosen": {"name": kept.chosen}}
            for site, kept in result.personal.sites.items()
        },
        bytes_sent=sum(site.bytes_sent for each in rounds for site in each.sites.values()),
        upload_share=upload_share(result.search) if result.search and result.search.supernet_rounds else None,
        search=result.search.model_dump(exclude={"supernet_rounds", "rounds"}) if result.search else None,
    )


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
        two), and ``step``: the time of a training step as a share of the
        plain step of the quick job's U-Net.
        """
        architecture, saving = "", Saving()
        if self._result and self._result.search and (model.startswith("searched") or model == "consensus"):
            found = self._result.search.sites[site]
            architecture, saving = found.architecture, found.saving
            if model == "consensus":
                architecture = str(self._result.search.consensus)
        elif self._result:
            saving = self._result.sites[site].saving
        key = (architecture, saving)
        if key not in self._known:
            self._known[key] = self._measure(architecture, saving)
        return self._known[key]

    def _measure(self, architecture: str, saving: Saving) -> dict[str, float]:
        training = self._job.training.model_copy(update=saving.model_dump())
        own = self._job.model_copy(update={"training": training})
        plain = self._job.model_copy(update={"network": load_job(QUICK).network})
        steps = {"plain": _steps(plain, ""), "own": _steps(own, architecture)}
        for each in steps.values():
            each.step()
        seconds = in_turns({name: each.step for name, each in steps.items()}, _TIMED_STEPS)
        share = statistics.median(seconds["own"]) / statistics.median(seconds["plain"])
        operations = forward_flops(ready_network(self._job, CPU, architecture), self._job.data.patch_voxels)
        return {"operations": operations, "step": share}


def _steps(job: Job, architecture: str) -> RandomSteps:
    precision = choose_precision(job.training.precision, CPU)
    network = ready_network(job, CPU, architecture)
    return RandomSteps(network, job.training_patch, job.training.batch_size, CPU, precision, job.training)


def upload_share(search: SearchResult) -> float:
    """Mean of what a site sends in a round of the search, as a share of the supernet."""
    sent = [site.bytes_sent for each in search.supernet_rounds for site in each.sites.values()]
    return sum(sent) / len(sent) / search.supernet_bytes


def alone(name: str, job: Job, sites: dict[str, SiteSettings], budgets: dict[str, int], together: bool) -> Run:
    """Train without federation: each site for itself, or all cases in one place."""
    started = time.monotonic()
    steps = job.training.steps_per_round
    memory, cost = unet_memory(job), Costs(job).of("", name)
    parameters = sum(each.numel() for each in ready_network(job, CPU).parameters())
    models: dict[str, dict[str, dict[str, Any]]] = {}
    groups = [list(sites)] if together else [[site] for site in sites]
    for group in groups:
        baseline = train_baseline(job, group, sites, steps * len(group))
        for site in group:
            models[site] = {
                name: {
                    "scores": baseline.sites[site].model_dump(),
                    "memory_bytes": memory,
                    "parameters": parameters,
                    "cost": cost,
                }
            }
    return Run(name=name, seed=job.seed, seconds=time.monotonic() - started, budgets=budgets, models=models)


@dataclass(frozen=True)
class Field:
    """What all rows of one seed have in common.

    Attributes:
        job: the U-Net's.
        sites: the sites.
        budgets: bytes, by site.
        folder: for the results of the runs.
        share: of the steps of a search, that its supernet takes.
    """

    job: Job
    sites: dict[str, SiteSettings]
    budgets: dict[str, int]
    folder: Path
    share: float

    def federated(self, name: str, job: Job, keep: bool = False) -> Run:
        """See `federated`."""
        return federated(name, job, self.sites, self.folder / name, self.budgets, keep)

    def alone(self, name: str, together: bool) -> Run:
        """See `alone`."""
        return alone(name, self.job, self.sites, self.budgets, together)

    def searched(self, name: str, **search: Any) -> Run:
        """The job with a search of cells."""
        return self.federated(name, searching(self.job, self.share, **search))


ROWS: Mapping[str, Callable[[Field], Run]] = {
    "unet": lambda field: field.federated("unet", field.job),
    "unet in budget": lambda field: field.federated("unet in budget", recomputing(field.job), keep=True),
    "search width": lambda field: field.federated("search width", widths(recomputing(field.job))),
    "search width half": lambda field: field.federated(
        "search width half", widths(with_network(field.job, channels=HALF))
    ),
    "search nested": lambda field: field.searched("search nested", mode="nested"),
    "search random": lambda field: field.searched("search random", mode="nested", strategy="random"),
    "search consensus": lambda field: field.searched("search consensus", mode="consensus"),
    "search free": lambda field: field.searched("search free", mode="free"),
    "local": lambda field: field.alone("local", together=False),
    "centralised": lambda field: field.alone("centralised", together=True),
    "ditto": lambda field: field.federated("ditto", with_ditto(field.job)),
    "segresnet": lambda field: field.federated(
        "segresnet", with_network(field.job, name="segresnet", channels=SEGRESNET)
    ),
    "dynunet": lambda field: field.federated("dynunet", with_network(field.job, name="dynunet", size="small")),
}
