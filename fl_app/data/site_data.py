"""A site's data, from folder to prepared cases: find, check, split, prepare."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from fl_app.config import DataSettings
from fl_app.data.findings import Finding, format_findings
from fl_app.data.preparation import PreparedCase, prepare_cases
from fl_app.data.site_check import check_site, split_site
from fl_app.errors import DataError


@dataclass(frozen=True)
class SiteData:
    """Prepared cases of a site in three parts, and what the check found that was no error."""

    training: list[PreparedCase]
    validation: list[PreparedCase]
    test: list[PreparedCase]
    warnings: list[Finding]

    def near(self, device: torch.device, most: int) -> SiteData:
        """The same with the training and validation cases' voxels on a device, if they take no more bytes than that."""
        voxels = [each for case in (*self.training, *self.validation) for each in (case.image, case.label)]
        if sum(each.nbytes for each in voxels) > most:
            return self
        training, validation = ([_moved(case, device) for case in cases] for cases in (self.training, self.validation))
        return replace(self, training=training, validation=validation)


def load_site_data(
    folder: Path, settings: DataSettings, seed: int, cache: Path | None, only: Sequence[str] | None = None
) -> SiteData:
    """Check, split and prepare a site's data.

    Raises:
        DataError: the check found errors (all of them are in the message), or there are too few cases.
    """
    findings = check_site(folder, settings, cache, only)
    if any(finding.severity == "error" for finding in findings):
        raise DataError(format_findings(findings))
    parts = split_site(folder, settings, seed, only)
    prepared = {part: prepare_cases(cases, settings, cache) for part, cases in parts.items()}
    return SiteData(**prepared, warnings=findings)


def _moved(case: PreparedCase, device: torch.device) -> PreparedCase:
    return replace(case, image=case.image.to(device), label=case.label.to(device))
