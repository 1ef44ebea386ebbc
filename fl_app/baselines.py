"""What the federation is compared with: the same code and the same number of steps, without federation.

local        each site alone: rounds x steps_per_round steps, as many as the site takes in the federation
centralised  all sites' cases in one place: as many steps as all sites together take in the federation

Both keep the model that is best on their own validation cases, looked at once a round, as the federation does.
``python -m fl_app.baselines RESULT_FOLDER SITE [SITE ...]`` is what `fl_app.simulation` starts as a process.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import torch

from fl_app.config import Job
from fl_app.config_file import load_job
from fl_app.data.preparation import PreparedCase
from fl_app.data.site_data import load_site_data
from fl_app.files import replacing
from fl_app.model_file import ModelInfo, save_model
from fl_app.processes import end_with_parent
from fl_app.result import Baseline, site_scores, software_versions, weighted_mean
from fl_app.site import SiteSettings, read_site
from fl_app.training.device import choose_device
from fl_app.training.reporting import test_report, validation_report, write_case_scores
from fl_app.training.trainer import Trainer


def train_baseline(
    job: Job,
    trained_on: list[str],
    sites: Mapping[str, SiteSettings],
    steps: int,
    model: Path | None = None,
    case_files: Mapping[str, Path] | None = None,
) -> Baseline:
    """Train one model on the cases of some sites, and score it on each site's test cases.

    Args:
        job: the job; its rounds say how often the model is validated.
        trained_on: names of the sites whose training and validation cases are used.
        sites: all sites' settings.
        steps: optimiser steps between two validations.
        model: where to save the model, or none.
        case_files: where to write the scores of a site's test cases one by one, for sites that want it.
    """
    started = time.monotonic()
    data = {
        name: load_site_data(settings.data, job.data, job.seed, settings.cache, settings.cases)
        for name, settings in sites.items()
    }
    training: list[PreparedCase] = [case for name in trained_on for case in data[name].training]
    validation: list[PreparedCase] = [case for name in trained_on for case in data[name].validation]
    organs = tuple(job.data.labels)
    trainer = Trainer(job, training, choose_device(next(iter(sites.values())).device), "+".join(trained_on))
    best, best_round, best_value = trainer.all_values(), 0, -1.0
    rounds = job.federation.rounds or job.search.rounds  # the federation's, or those of what a search finds
    for number in range(1, rounds + 1):
        trainer.train(number, steps, rounds)
        metrics = validation_report(trainer.score(validation), organs, 0.0).metrics
        value = metrics[job.federation.best_metric]
        if value is not None and value > best_value:
            best, best_round, best_value = trainer.all_values(), number, value
    trainer.load(best)
    if model:
        info = ModelInfo(job, best_round, (job.federation.best_metric, best_value), software_versions())
        save_model(model, best, info)
    tested = {name: trainer.score(held.test, native=True) for name, held in data.items()}
    for name, path in (case_files or {}).items():
        write_case_scores(path, tested[name])
    scores = {name: site_scores(test_report(found, organs, 0.0)) for name, found in tested.items()}
    return Baseline(
        trained_on=trained_on,
        steps=steps * rounds,
        seconds=round(time.monotonic() - started, 3),
        sites=scores,
        mean_dice=weighted_mean((score.dice, score.cases) for score in scores.values()),
    )


def _train_and_write(out: Path, name: str, trained_on: list[str], names: list[str], threads: int) -> None:
    torch.set_num_threads(threads)
    job = load_job(out / "job.yaml")
    sites = {site: read_site(out / "sites" / site / "site.yaml") for site in names}
    folder = out / "baselines"
    baseline = train_baseline(
        job, trained_on, sites, job.training.steps_per_round * len(trained_on), folder / f"{name}.safetensors"
    )
    with replacing(folder / f"{name}.json") as temporary:
        temporary.write_text(baseline.model_dump_json(indent=2))


def main(out: Path, names: list[str]) -> None:
    """Train each site's own model, as many at once as there are cores, then the centralised one."""
    cores = len(os.sched_getaffinity(0))
    at_once = min(len(names), cores)
    with ProcessPoolExecutor(at_once, mp_context=get_context("spawn")) as pool:
        waiting = [
            pool.submit(_train_and_write, out, f"local-{name}", [name], names, max(1, cores // at_once))
            for name in names
        ]
        for each in waiting:
            each.result()
        pool.submit(_train_and_write, out, "centralised", names, names, cores).result()


if __name__ == "__main__":
    end_with_parent()
    main(Path(sys.argv[1]), sys.argv[2:])
