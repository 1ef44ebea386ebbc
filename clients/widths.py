"""A site's part in a search of widths: the job's own network, as wide as the site's memory allows."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch

from clients.found import Planned, found_trainer
from fl_app.config import Job
from fl_app.data.site_data import SiteData
from fl_app.errors import BudgetError
from fl_app.messages import SearchReady, WidestNetwork
from fl_app.networks.space.decoding import mebibytes
from fl_app.networks.widths import WIDTHS, Width
from fl_app.site import SiteSettings
from fl_app.training.device import memory_budget
from fl_app.training.fitting import LARGE_PATCH, Fit, fit_training, is_quick, with_training
from fl_app.training.trainer import Trainer

_logger = logging.getLogger(__name__)
# (least share of the patch's sides, eighths), as a site tries them: smaller patches do more harm to all sites than a
# network that is a little narrower (docs/search.md)
_ORDER = ((1.0, range(6, 9)), (LARGE_PATCH, WIDTHS), (0.0, WIDTHS))


class SiteWidths:
    """Finds the widest network that fits; each is tried for a step.

    Args:
        job: the job.
        site: the site's name.
        settings: the site's.
        data: the site's cases.
        device: where to compute.
        processes: that take the steps together.
    """

    def __init__(
        self,
        job: Job,
        site: str,
        settings: SiteSettings,
        data: SiteData,
        device: torch.device,
        processes: int = 1,
    ) -> None:
        self._job = job
        self._site = site
        self._data = data
        self._device = device
        self._processes = processes
        self._budget = memory_budget(settings.memory_budget_gib, device)
        self._longest = settings.window_budget_s
        self._plans: dict[str, Job] = {}  # how each network is trained here

    def ready(self, main: Fit) -> SearchReady:
        """The widest network that fits the site's memory, and is quick enough; whole patches come first.

        Args:
            main: how the job's own network is trained here.

        Raises:
            BudgetError: not even the narrowest is.
        """
        for least, widths in _ORDER:
            eighths, fit, quick = self._widest(_with_patches(self._job, least), widths, main)
            if fit.fits and (quick or widths == WIDTHS):  # smaller patches make no window quicker
                break
        if not fit.fits:
            raise BudgetError(
                f"the narrowest form of network.channels takes {mebibytes(fit.memory_bytes)} in training here, and the "
                f"memory budget is {mebibytes(self._budget)} - raise memory_budget_gib, or lower the job's "
                "network.channels, data.patch_voxels or training.batch_size",
                fit.memory_bytes,
            )
        if not quick:
            raise BudgetError(
                f"even the narrowest form of network.channels takes longer than window_budget_s: {self._longest:g} to "
                "predict a window - raise it, or lower the job's data.patch_voxels",
                fit.memory_bytes,
            )
        self._plans[Width(eighths).to_json()] = fit.job
        _logger.info(f"memory budget {mebibytes(self._budget)}: {eighths} eighths of the job's network, {fit.words}")
        parameters = sum(value.numel() for value in fit.network.parameters())
        widest = WidestNetwork(
            eighths=eighths, parameters=parameters, measured_bytes=fit.memory_bytes, saving=fit.saving
        )
        return SearchReady(budget_bytes=self._budget, main_bytes=main.memory_bytes, widest=widest)

    def _widest(self, job: Job, widths: range, main: Fit) -> tuple[int, Fit, bool]:
        """The widest network that fits, and is quick enough, in eighths; if there is none, the narrowest. And whether
        it is quick.
        """
        saving = main.saving
        known = not saving.frozen_share and saving.patch_share >= job.training.least_patch_share
        for eighths in reversed(widths):
            fit = main if known and eighths == WIDTHS[-1] else self._fit(Width(eighths).to_json(), job)
            quick = self._is_quick(fit)
            if fit.fits and quick:
                break
        return eighths, fit, quick

    def trainer(self, architecture: str, own: Sequence[str], consensus: str) -> Trainer:
        """A trainer of the site's own network and of what all sites have; what no other site holds stays here."""
        return found_trainer(
            self._site, self._data, self._device, self._planned(architecture), own, self._planned(consensus)
        )

    def _is_quick(self, fit: Fit) -> bool:
        return is_quick(fit.network, self._job, self._device, self._longest)

    def _planned(self, architecture: str) -> Planned:
        if architecture not in self._plans:
            fit = self._fit(architecture, _with_patches(self._job, LARGE_PATCH))
            self._plans[architecture] = (fit if fit.fits else self._fit(architecture, self._job)).job
        return self._plans[architecture], architecture

    def _fit(self, architecture: str, job: Job) -> Fit:
        return fit_training(job, self._device, self._budget, architecture, self._processes)


def _with_patches(job: Job, least: float) -> Job:
    """The same job, whose training patches have such a share of the sides at least."""
    return with_training(job, least_patch_share=max(least, job.training.least_patch_share))
