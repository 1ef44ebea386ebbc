"""Federated architecture search against what it must beat, at sites with unequal memory.

    python -m benchmarks.architecture_search --seeds 0 1 2 --out results/search

Four sites of the phantom cohort, with memory budgets of 100, 75, 50 and 25 % of what training the quick job's U-Net
takes. Every row takes the same number of optimiser steps at each site; for the searched networks the supernet's are
among them, and the generations that choose have none. Fine-tuning adds the same steps to all. The budgets bind the
searched rows only: the others train networks that break some of them, which the table marks.

Runs that are finished are kept in the folder and not run again, so the command can be ended and started anew. No
FLARE process is started: the sites take turns in this process, with the same workflow (`fl_app.rehearsal`).
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel

from benchmarks.search_tables import print_tables
from fl_app.baselines import train_baseline
from fl_app.config import Job
from fl_app.config_file import load_job
from fl_app.data.phantom import make_cohort
from fl_app.rehearsal import rehearse
from fl_app.result import SearchResult
from fl_app.site import SiteSettings
from fl_app.training.fitting import training_memory
from fl_app.training.trainer import ready_network

SITES = 4
BUDGETS = (1.0, 0.75, 0.5, 0.25)
HALF = (8, 16, 32, 64)  # half the channels of the quick job's U-Net
QUICK = Path(__file__).parents[1] / "fl_app" / "jobs" / "quick.yaml"


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
    device = torch.device("cpu")
    return training_memory(ready_network(job, device), job, device)


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
    assert result.personal is not None
    rounds = [*result.rounds, *(result.search.supernet_rounds + result.search.rounds if result.search else [])]
    return Run(
        name=name,
        seed=job.seed,
        seconds=time.monotonic() - started,
        budgets=budgets,
        models={
            site: {model: each.model_dump() for model, each in kept.models.items()} | {"chosen": {"name": kept.chosen}}
            for site, kept in result.personal.sites.items()
        },
        bytes_sent=sum(site.bytes_sent for each in rounds for site in each.sites.values()),
        upload_share=upload_share(result.search) if result.search and result.search.supernet_rounds else None,
        search=result.search.model_dump(exclude={"supernet_rounds", "rounds"}) if result.search else None,
    )


def upload_share(search: SearchResult) -> float:
    """Mean of what a site sends in a round of the search, as a share of the supernet."""
    sent = [site.bytes_sent for each in search.supernet_rounds for site in each.sites.values()]
    return sum(sent) / len(sent) / search.supernet_bytes


def alone(name: str, job: Job, sites: dict[str, SiteSettings], budgets: dict[str, int], together: bool) -> Run:
    """Train without federation: each site for itself, or all cases in one place."""
    started = time.monotonic()
    steps = job.training.steps_per_round
    memory = unet_memory(job)
    models: dict[str, dict[str, dict[str, Any]]] = {}
    groups = [list(sites)] if together else [[site] for site in sites]
    for group in groups:
        baseline = train_baseline(job, group, sites, steps * len(group))
        for site in group:
            models[site] = {name: {"scores": baseline.sites[site].model_dump(), "memory_bytes": memory}}
    return Run(name=name, seed=job.seed, seconds=time.monotonic() - started, budgets=budgets, models=models)


def main() -> None:
    """Run what is missing, then print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=Path("results/search"))
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--tuning", type=int, default=40)
    parser.add_argument("--budgets", type=float, nargs="+", default=BUDGETS, help="shares of the U-Net's memory")
    parser.add_argument("--supernet-share", type=float, default=0.2, help="of the steps, that the supernet takes")
    parser.add_argument("--only", nargs="*", help="rows to run; default: all")
    parser.add_argument("--print", action="store_true", help="only print what there is")
    arguments = parser.parse_args()
    for seed in [] if arguments.print else arguments.seeds:
        folder = arguments.out / f"seed-{seed}"
        data = make_cohort(arguments.out / f"phantom-{seed}", sites=len(arguments.budgets), seed=seed)
        job = base_job(seed, arguments.rounds, arguments.steps, arguments.tuning)
        memory = unet_memory(job)
        sites = {path.name: SiteSettings(data=path, cache=arguments.out / "cache") for path in data}
        budgets = {site: int(memory * share) for site, share in zip(sites, arguments.budgets, strict=True)}

        def federate(name: str, changed: Job, keep: bool = False) -> Callable[[], Run]:
            return lambda: federated(name, changed, sites, folder / name, budgets, keep)  # noqa: B023 - called at once

        with_ditto = job.model_copy(update={"personal": job.personal.model_copy(update={"ditto": 0.1})})
        share = arguments.supernet_share
        searched = {mode: searching(job, share, mode=mode) for mode in ("nested", "consensus", "free")}
        rows: dict[str, Callable[[], Run]] = {
            "unet": federate("unet", job),
            "unet in budget": federate("unet in budget", recomputing(job), keep=True),
            "search width": federate("search width", widths(recomputing(job))),
            "search width half": federate("search width half", widths(with_network(job, channels=HALF))),
            "search nested": federate("search nested", searched["nested"]),
            "search random": federate("search random", searching(job, share, mode="nested", strategy="random")),
            "search consensus": federate("search consensus", searched["consensus"]),
            "search free": federate("search free", searched["free"]),
            "local": lambda: alone("local", job, sites, budgets, together=False),  # noqa: B023
            "centralised": lambda: alone("centralised", job, sites, budgets, together=True),  # noqa: B023
            "ditto": federate("ditto", with_ditto),
            "segresnet": lambda: federate("segresnet", with_network(job, name="segresnet"))(),  # noqa: B023
            "dynunet": lambda: federate("dynunet", with_network(job, name="dynunet"))(),  # noqa: B023
        }
        for name in arguments.only or rows:
            path = folder / f"{name}.json"
            if path.exists():
                continue
            run = rows[name]()
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(run.model_dump_json(indent=1))
            print(f"seed {seed}, {name}: {run.seconds:.0f} s", flush=True)
    print_tables(arguments.out)


if __name__ == "__main__":
    main()
