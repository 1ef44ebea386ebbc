"""The phantom's sites differ enough to matter: who learns at one of them is worse at the others."""

import pytest
import torch

from fl_app.config_file import parse_job
from fl_app.data.phantom import make_cohort
from fl_app.data.site_data import load_site_data
from fl_app.training.trainer import Trainer

pytestmark = [pytest.mark.slow, pytest.mark.long]

JOB = """
data: {spacing_mm: [4, 4, 5], patch_voxels: [64, 64, 32], validation_fraction: 0.15, test_fraction: 0.35}
network: {channels: [16, 32, 64, 128]}
training: {learning_rate: 0.01, steps_per_round: 200}
federation: {rounds: 1}
"""


def test_a_model_trained_at_one_site_alone_does_worse_at_the_others(tmp_path):
    job = parse_job(JOB)
    make_cohort(tmp_path, sites=3, seed=0)
    data = {
        site: load_site_data(tmp_path / site, job.data, job.seed, cache=None) for site in ("site-1", "site-2", "site-3")
    }
    trainer = Trainer(job, data["site-2"].training, torch.device("cpu"), "site-2")
    trainer.train(1, job.training.steps_per_round, 1)
    dice = {}
    for site, held in data.items():
        scores = [score.dice["spleen"] for score in trainer.score([*held.test, *held.validation])]
        dice[site] = sum(scores) / len(scores)
    assert dice["site-2"] > 0.7, "it learned"
    assert dice["site-2"] > max(dice["site-1"], dice["site-3"]), dice
    assert dice["site-2"] - (dice["site-1"] + dice["site-3"]) / 2 > 0.05, dice
