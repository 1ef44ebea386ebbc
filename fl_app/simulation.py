"""A whole federation on this machine: data for the sites, FLARE's simulator, and one folder with the result."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from fl_app.config import Job
from fl_app.config_file import load_job
from fl_app.data.cases import find_cases, find_sites
from fl_app.data.findings import Finding, format_findings
from fl_app.data.site_check import check_site, split_site
from fl_app.data.splits import assign_to_sites
from fl_app.errors import ConfigError, DataError, FederationError, UsageError
from fl_app.processes import running
from fl_app.result import RESULT_VARIABLE, Baseline, Result, read_result, write_result
from fl_app.site import SITE_FILE_VARIABLE, SiteSettings, write_site
from fl_app.under_way import UNDER_WAY, UnderWay, read_under_way

DEFAULT_SITES = 3
_POLL_SECONDS = 0.2

Located = tuple[Path, tuple[str, ...] | None]  # a site's data folder, and its cases' names unless it has them all


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
        shared: folder for what the next run can use again: the phantom cohort, prepared cases.
    """

    job: Job
    out: Path
    data: Path | None = None
    sites: int | None = None
    split: str = "iid"
    device: str = "auto"
    memory_budgets_gib: tuple[float, ...] = ()
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


def run_simulation(simulation: Simulation, events: Events, compare: bool = False) -> Result:
    """Run a federation to its end.

    Raises:
        UserError: with the cause; what was reached until then is in ``simulation.out``.
    """
    out = simulation.out
    if (out / "result.json").exists():
        raise UsageError(f"--out {out}: holds the result of another run - name a new folder")
    for path in (out.absolute(), Path(sys.executable)):
        if any(character.isspace() for character in str(path)):
            # FLARE's simulator puts paths into a command line and takes it apart at spaces
            raise UsageError(f"{path}: FLARE's simulator needs paths without spaces - choose another folder")
    if simulation.device not in ("auto", "cpu"):
        from fl_app.training.device import choose_device  # imports torch: seconds that other runs need not wait

        choose_device(simulation.device)
    sites = _site_settings(simulation, events)
    quorum = simulation.job.federation.min_sites
    if quorum > len(sites):
        raise ConfigError(f"federation.min_sites: {quorum} - at most {len(sites)}, since that many sites take part")
    _check_data(simulation.job, sites, events)
    for name, settings in sites.items():
        write_site(out / "sites" / name / "site.yaml", settings)
    (out / "job.yaml").write_text(yaml.safe_dump(simulation.job.model_dump(mode="json"), sort_keys=False))
    return _run(out, list(sites), events, compare)


def resume_simulation(out: Path, events: Events, compare: bool = False) -> Result:
    """Go on with a run that was ended early, after the last round that it finished.

    Raises:
        UserError: with the cause; what was reached until then stays in ``out``.
    """
    result = read_result(out / "result.json")
    if result.status == "finished":
        raise UsageError(f"--resume {out}: that run is finished")
    load_job(out / "job.yaml")
    sites = sorted(path.parent.name for path in (out / "sites").glob("*/site.yaml"))
    if not sites:
        raise UsageError(f"--resume {out}: its sites' folders are gone - start a new run")
    shutil.rmtree(out / "flare", ignore_errors=True)  # of a run that could not tidy up
    result.status, result.error = "running", None
    write_result(out / "result.json", result)
    return _run(out, sites, events, compare)


def _run(out: Path, sites: list[str], events: Events, compare: bool) -> Result:
    environment = {
        SITE_FILE_VARIABLE: str(out.absolute() / "sites" / "{site}" / "site.yaml"),
        # each site gets its share of the processor, in NumPy's and SciPy's libraries as well
        "OMP_NUM_THREADS": str(_threads(len(sites))),
        RESULT_VARIABLE: str(out.absolute()),
    }
    _federate(out, sites, environment, events)
    result = read_result(out / "result.json")
    if result.status != "finished":
        raise FederationError(f"{result.error or 'the server ended early'} (logs: {out / 'logs'})")
    if compare:
        _compare(out, sites, events)
        result = read_result(out / "result.json")
    return result


def _site_settings(simulation: Simulation, events: Events) -> dict[str, SiteSettings]:
    """Each site's name and settings."""
    located = _locate(simulation, events)
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
            threads=_threads(len(located)),
            memory_budget_gib=budgets[name],
            cache=(simulation.shared / "cache").absolute(),
            output=(simulation.out / "sites" / name).absolute(),
            state=(simulation.out / "sites" / name / "state").absolute(),
        )
        for name, (folder, cases) in located.items()
    }


def _locate(simulation: Simulation, events: Events) -> dict[str, Located]:
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


def _check_data(job: Job, sites: dict[str, SiteSettings], events: Events) -> None:
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


def _federate(out: Path, sites: list[str], environment: dict[str, str], events: Events) -> None:
    workspace = out.absolute() / "flare" / "run"
    growing = out / "result.json"
    command = [sys.executable, "-m", "fl_app.job", str(workspace.parent), str(out.absolute() / "job.yaml"), *sites]
    try:
        with running(command, out / "logs" / "simulator.log", environment) as process:
            _follow(process, growing, events)
    finally:
        _collect(workspace, out, sites)
    if not (out / "result.json").exists():
        raise FederationError(
            f"FLARE's simulator ended before the server had begun; see {out / 'logs' / 'simulator.log'}"
        )


def _follow(process: subprocess.Popen[bytes], growing: Path, events: Events) -> None:
    """Report progress until the run has ended: by its own word, or because the process is gone."""
    seen, told = 0, UnderWay()
    while True:
        ended = process.poll() is not None
        changed = growing.stat().st_mtime_ns if growing.exists() else 0
        under_way = read_under_way(growing.with_name(UNDER_WAY))
        if changed and (changed, under_way) != (seen, told):
            seen, told = changed, under_way
            result = read_result(growing)
            events.progress(result, under_way)
            # the simulator takes seconds to take itself down; there is nothing in them to wait for
            ended = ended or result.status != "running"
        if ended:
            return
        time.sleep(_POLL_SECONDS)


def _collect(workspace: Path, out: Path, sites: list[str]) -> None:
    """Move what is worth keeping from FLARE's workspace into the result's folder."""
    logs = {"server": workspace / "server" / "log.txt"}
    logs |= {site: workspace / site / "log.txt" for site in sites}
    for name, path in logs.items():
        if path.exists():
            path.replace(out / "logs" / f"{name}.log")
    shutil.rmtree(workspace.parent, ignore_errors=True)
    path = out / "result.json"
    if path.exists():
        result = read_result(path)
        if result.status == "running":
            result.status, result.error = "interrupted", "the run was ended before its last round"
            write_result(path, result)


def _compare(out: Path, sites: list[str], events: Events) -> None:
    """Train without federation, with the same code and budget; the scores go into ``result.json``."""
    path = out / "result.json"
    result = read_result(path)
    command = [sys.executable, "-m", "fl_app.baselines", str(out.absolute()), *sites]
    with running(command, out / "logs" / "baselines.log", {}) as process:
        while process.poll() is None:
            for name in [*(f"local-{site}" for site in sites), "centralised"]:
                report = out / "baselines" / f"{name}.json"
                if name not in result.baselines and report.exists():
                    result.baselines[name] = Baseline.model_validate_json(report.read_text())
                    write_result(path, result)
                    events.baseline(name)
            time.sleep(_POLL_SECONDS)
    if process.returncode or len(result.baselines) < len(sites) + 1:
        raise FederationError(f"the baselines could not be trained; see {out / 'logs' / 'baselines.log'}")


def _threads(sites: int) -> int:
    """A site's share of the processor's cores."""
    return max(1, len(os.sched_getaffinity(0)) // sites)
