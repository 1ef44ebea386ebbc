"""A site's part in a search of widths: the job's own network, as wide as the site's memory allows."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch

from clients.found import found_trainer
from fl_app.config import Job
from fl_app.data.site_data import SiteData
from fl_app.errors import BudgetError
from fl_app.messages import SearchReady, WidestNetwork
from fl_app.networks.space.decoding import mebibytes
from fl_app.networks.widths import WIDTHS, Width, build_width
from fl_app.search.memory import training_memory
from fl_app.site import SiteSettings
from fl_app.training.device import memory_budget
from fl_app.training.trainer import Trainer
from fl_app.training.trial import usual_way

_logger = logging.getLogger(__name__)


class SiteWidths:
    """Finds the widest network that fits; each is tried for a step.

    Args:
        job: the job.
        site: the site's name.
        settings: the site's.
        data: the site's cases.
        device: where to compute.
    """

    def __init__(
        self,
        job: Job,
        site: str,
        settings: SiteSettings,
        data: SiteData,
        device: torch.device,
    ) -> None:
        self._job = job
        self._site = site
        self._data = data
        self._device = device
        self._budget = memory_budget(settings.memory_budget_gib, device)

    def ready(self, main: Trainer) -> SearchReady:
        """The widest network that fits the site's memory.

        Raises:
            BudgetError: not even the narrowest does.
        """
        network, eighths, way = main.network, WIDTHS[-1], usual_way(self._job, self._device)
        wanted = taken = training_memory(network, self._job, self._device)
        while taken > self._budget and eighths > WIDTHS[0]:
            eighths -= 1
            network = way.laid_out(build_width(self._job, Width(eighths)))
            taken = training_memory(network, self._job, self._device)
        if taken > self._budget:
            raise BudgetError(
                f"the narrowest form of network.channels takes {mebibytes(taken)} in training here, and the memory "
                f"budget is {mebibytes(self._budget)} - raise memory_budget_gib, or lower the job's network.channels, "
                "data.patch_voxels or training.batch_size",
                taken,
            )
        _logger.info(f"memory budget {self._budget} bytes: {eighths} eighths of the job's network take {taken}")
        parameters = sum(value.numel() for value in network.parameters())
        widest = WidestNetwork(eighths=eighths, parameters=parameters, measured_bytes=taken)
        return SearchReady(budget_bytes=self._budget, main_bytes=wanted, widest=widest)

    def trainer(self, architecture: str, own: Sequence[str], consensus: str) -> Trainer:
        """A trainer of the site's own network and of what all sites have; what no other site holds stays here."""
        return found_trainer(self._job, self._site, self._data, self._device, architecture, own, consensus)
