"""What to simulate, and what the caller hears of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from fl_app.config import Job
from fl_app.data.findings import Finding
from fl_app.result import Result
from fl_app.under_way import UnderWay


@dataclass(frozen=True)
class Simulation:
    """What to simulate.

    Attributes:
        job: the job.
        out: the result's folder; must not hold a result yet.
        data: a data set, or a folder with a sub-folder for each site; none: the phantom cohort.
        sites: how many; none: as many as ``data`` has sub-folders, else 3.
        split: how one data set is divided among the sites: iid, by-size, dirichlet:ALPHA or same.
        device: auto, cpu, cuda or cuda:N.
        memory_budgets_gib: of the sites in their order, or one for each of them; none: what is free.
        one_process: the sites take turns in one process, without FLARE, as they do where memory holds no process each.
        shared: folder for what the next run can use again: the phantom cohort, prepared cases.
    """

    job: Job
    out: Path
    data: Path | None = None
    sites: int | None = None
    split: str = "iid"
    device: str = "auto"
    memory_budgets_gib: tuple[float, ...] = ()
    one_process: bool = False
    shared: Path = field(default_factory=lambda: Path("results"))


@dataclass(frozen=True)
class Events:
    """What the caller hears while a simulation runs.

    Attributes:
        say: one line of news.
        warn: findings of the data check that are no errors, by site.
        progress: the result as it grows, and what the sites are doing.
        baseline: the baselines' names and how many are done.
    """

    say: Callable[[str], None]
    warn: Callable[[str, list[Finding]], None]
    progress: Callable[[Result, UnderWay], None]
    baseline: Callable[[str], None]
