"""Fine-tuning as it is usually done: a site takes the last weights, whatever its validation cases say."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.steps import CPU
from clients.personal import tuning_job
from fl_app.config import Job
from fl_app.data.site_data import load_site_data
from fl_app.model_file import load_model
from fl_app.result import site_scores
from fl_app.site import SiteSettings
from fl_app.training.reporting import case_file, test_report, write_case_scores
from fl_app.training.trainer import Trainer

TO_THE_END = "federated tuned to the end"


def tune_to_the_end(job: Job, model: Path, sites: Mapping[str, SiteSettings]) -> dict[str, dict[str, Any]]:
    """The scores of each site's fine-tuned model on its test cases; each case's go to the site's output folder.

    Args:
        job: the job; how long and how fast to tune.
        model: the federated model's file.
        sites: all sites' settings.
    """
    values, _ = load_model(model)
    found = {}
    for site, settings in sites.items():
        data = load_site_data(settings.data, job.data, job.seed, settings.cache)
        trainer = Trainer(tuning_job(job), data.training, CPU, f"{site} tuned")
        trainer.load(values)
        trainer.train(1, job.personal.fine_tuning_steps, 1)
        scores = trainer.score(data.test, native=True)
        assert settings.output
        write_case_scores(case_file(settings.output, TO_THE_END), scores)
        found[site] = {"scores": site_scores(test_report(scores, tuple(job.data.labels), 0.0)).model_dump()}
    return found
