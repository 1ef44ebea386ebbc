"""How a site trains the network that a search has found for it."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from fl_app.config import Job
from fl_app.data.site_data import SiteData
from fl_app.training.nested import NestedTrainer
from fl_app.training.trainer import Trainer, ready_network


def found_trainer(
    job: Job,
    site: str,
    data: SiteData,
    device: torch.device,
    architecture: str,
    own: Sequence[str],
    consensus: str,
) -> Trainer:
    """A trainer of a site's own network and, for a share of the steps, of the part that all sites have.

    Args:
        job: the job.
        site: the site's name.
        data: the site's cases.
        device: where to compute.
        architecture: the site's own network, as JSON.
        own: names of the values that no other site holds; they stay here.
        consensus: the network for all, as JSON.
    """

    def trainer_of(text: str, purpose: str) -> Trainer:
        return Trainer(job, data.training, device, f"{site} {purpose}", ready_network(job, device, text))

    trainer = trainer_of(architecture, "searched")
    trainer.exchanged = tuple(name for name in trainer.exchanged if name not in set(own))
    share = job.search.consensus_share
    # free: the site's own network need not hold the one for all
    free = job.search.of_cells and job.search.mode == "free"
    if free or consensus == architecture or not share:
        return trainer
    return NestedTrainer(trainer, trainer_of(consensus, "consensus"), share)
