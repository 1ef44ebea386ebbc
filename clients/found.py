"""How a site trains the network that a search has found for it."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from fl_app.config import Job
from fl_app.data.site_data import SiteData
from fl_app.training.nested import NestedTrainer
from fl_app.training.trainer import Trainer, ready_network

Planned = tuple[Job, str]


def found_trainer(
    site: str, data: SiteData, device: torch.device, whole: Planned, own: Sequence[str], part: Planned
) -> Trainer:
    """A trainer of a site's own network and, for a share of the steps, of the part that all sites have.

    Args:
        site: the site's name.
        data: the site's cases.
        device: where to compute.
        whole: the site's own network, as JSON, and the job as the site trains it.
        own: names of the values that no other site holds; they stay here.
        part: the network for all likewise.
    """

    def trainer_of(planned: Planned, purpose: str) -> Trainer:
        job, text = planned
        return Trainer(job, data.training, device, f"{site} {purpose}", ready_network(job, device, text))

    trainer = trainer_of(whole, "searched")
    trainer.exchanged = tuple(name for name in trainer.exchanged if name not in set(own))
    search = whole[0].search
    # free: the site's own network need not hold the one for all
    free = search.of_cells and search.mode == "free"
    if free or part[1] == whole[1] or not search.consensus_share:
        return trainer
    return NestedTrainer(trainer, trainer_of(part, "consensus"), search.consensus_share)
