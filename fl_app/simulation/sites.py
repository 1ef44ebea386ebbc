"""The sites of a simulation: their data, checked, and their settings."""

from __future__ import annotations

import os
import time
from pathlib import Path

import psutil

from fl_app.config import Job
from fl_app.data.cases import find_cases, find_sites
from fl_app.data.findings import format_findings
from fl_app.data.site_check import check_site, split_site
from fl_app.data.splits import assign_to_sites
from fl_app.errors import DataError, UsageError
from fl_app.simulation.parts import Events, Simulation
from fl_app.site import SiteSettings

DEFAULT_SITES = 3
_LEAST_BYTES = 400 * 2**20  # of a site's process: 300 MB for its libraries, and some for its training

Located = tuple[Path, tuple[str, ...] | None]  # a site's data folder, and its cases' names unless it has them all


def settings_of(simulation: Simulation, located: dict[str, Located], threads: int) -> dict[str, SiteSettings]:
    """Each site's name and settings.

    Args:
        simulation: what to simulate.
        located: where each site's data is.
        threads: of each site.
    """
    given = simulation.memory_budgets_gib or (None,)
    if len(given) not in (1, len(located)):
        raise UsageError(
            f"--memory-budget-gib: given {len(given)} times for {len(located)} sites - once for all, or once for each"
        )
    budgets = dict(zip(located, given if len(given) > 1 else given * len(located), strict=True))
    return {
        name: SiteSettings(
            data=folder.absolute(),
            cases=cases,
            device=simulation.device,
            threads=threads,
            memory_budget_gib=budgets[name],
            cache=(simulation.shared / "cache").absolute(),
            output=(simulation.out / "sites" / name).absolute(),
            state=(simulation.out / "sites" / name / "state").absolute(),
        )
        for name, (folder, cases) in located.items()
    }


def locate(simulation: Simulation, events: Events) -> dict[str, Located]:
    """Where each site's data is: made, found in sub-folders, or divided from one data set."""
    if simulation.data is None:
        return _make_phantoms(simulation, events)
    found = find_sites(simulation.data)
    if found is None:
        return _divide(simulation, simulation.data, events)
    if simulation.sites is not None and simulation.sites != len(found):
        names = ", ".join(found)
        raise UsageError(
            f"--sites {simulation.sites}: {simulation.data} has a sub-folder for each of {len(found)} sites "
            f"({names}) - leave --sites out, or remove the sub-folders that shall not take part"
        )
    return {name: (folder, None) for name, folder in found.items()}


def _make_phantoms(simulation: Simulation, events: Events) -> dict[str, Located]:
    from fl_app.data.phantom import make_cohort  # imports SciPy

    count = simulation.sites or DEFAULT_SITES
    started = time.monotonic()
    folder = simulation.shared / "phantom" / f"{count}-sites-seed-{simulation.job.seed}"
    made = make_cohort(folder, sites=count, seed=simulation.job.seed)
    events.say(f"phantom cohort: {folder} ({time.monotonic() - started:.0f} s)")
    return {path.name: (path, None) for path in made}


def _divide(simulation: Simulation, folder: Path, events: Events) -> dict[str, Located]:
    dataset = find_cases(folder)
    if any(problem.severity == "error" for problem in dataset.problems):
        raise DataError(f"{folder}:\n{format_findings(dataset.problems)}")
    if dataset.problems:
        events.warn(str(folder), list(dataset.problems))
    parts = assign_to_sites(dataset.cases, simulation.sites or DEFAULT_SITES, simulation.split, simulation.job.seed)
    return {f"site-{number}": (folder, tuple(case.name for case in part)) for number, part in enumerate(parts, start=1)}


def check_data(job: Job, sites: dict[str, SiteSettings], events: Events) -> None:
    """All sites' findings at once; errors stop the run before anything starts."""
    errors: list[str] = []
    for name, settings in sites.items():
        findings = check_site(settings.data, job.data, settings.cache, settings.cases)
        if any(finding.severity == "error" for finding in findings):
            errors.append(f"{name} ({settings.data}):\n{format_findings(findings)}")
        elif findings:
            events.warn(name, findings)
        try:
            parts = split_site(settings.data, job.data, job.seed, settings.cases)
        except DataError as error:
            errors.append(f"{name} ({settings.data}): {error}")
        else:
            counts = ", ".join(f"{len(cases)} {part}" for part, cases in parts.items())
            events.say(f"{name}: {counts}")
    if errors:
        raise DataError("\n".join(["the data check found errors; nothing was started", *errors]))


def threads_of_each(sites: int) -> int:
    """A site's share of the processor's cores."""
    return max(1, len(os.sched_getaffinity(0)) // sites)


def fit_as_processes(sites: int) -> bool:
    """Whether the free memory holds a process for each site, with what each needs at the least."""
    return sites * _LEAST_BYTES <= psutil.virtual_memory().available
