"""Check and split a site's data without reading more than the check needs; quick to import."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from fl_app.config import DataSettings
from fl_app.data.cases import Case, Dataset, find_cases
from fl_app.data.checks import check_cases
from fl_app.data.findings import Finding
from fl_app.data.splits import Split, split_cases
from fl_app.files import replacing


def check_site(
    folder: Path, settings: DataSettings, cache: Path | None, only: Sequence[str] | None = None
) -> list[Finding]:
    """All findings on a site's data; taken from the cache while no file has changed.

    Args:
        folder: the site's data folder.
        settings: the job's data section.
        cache: folder for what was found, or none.
        only: names of the cases to look at; none: all.

    Raises:
        DataError: the folder holds no data set.
    """
    dataset = _chosen(find_cases(folder), only)
    if cache is None:
        return check_cases(dataset, settings.labels)
    path = cache / f"checked-{_state(dataset, settings)}.json"
    if path.exists():
        return [Finding(**item) for item in json.loads(path.read_text())]
    findings = check_cases(dataset, settings.labels)
    with replacing(path) as temporary:
        temporary.write_text(json.dumps([dataclasses.asdict(finding) for finding in findings]))
    return findings


def split_site(
    folder: Path, settings: DataSettings, seed: int, only: Sequence[str] | None = None
) -> dict[str, list[Case]]:
    """The site's cases by part: training, validation and test.

    Raises:
        DataError: too few cases.
    """
    dataset = _chosen(find_cases(folder), only)
    by_name = {case.name: case for case in dataset.cases}
    if settings.reuse_cases:
        split = Split.reused(list(by_name))
    else:
        split = split_cases(list(by_name), seed, settings.validation_fraction, settings.test_fraction)
    return {part: [by_name[name] for name in getattr(split, part)] for part in ("training", "validation", "test")}


def _chosen(dataset: Dataset, only: Sequence[str] | None) -> Dataset:
    if only is None:
        return dataset
    wanted = set(only)
    cases = tuple(case for case in dataset.cases if case.name in wanted)
    # what is wrong with the folder as a whole belongs to no single one of the sites that share it
    return dataclasses.replace(dataset, cases=cases, problems=())


def _state(dataset: Dataset, settings: DataSettings) -> str:
    """Changes when a file is added, removed or written."""
    files = [path for case in dataset.cases for path in (case.image, case.label) if path is not None]
    facts = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in files if path.exists()]
    known = [dataclasses.asdict(problem) for problem in dataset.problems]
    return hashlib.sha256(json.dumps([facts, known, settings.labels]).encode()).hexdigest()[:32]
