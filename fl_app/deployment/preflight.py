"""`fedspleen client check`: everything that would keep a site from taking part, all at once, each with its remedy."""

from __future__ import annotations

import dataclasses
import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from fl_app.config import Job
from fl_app.data.findings import Finding, error, warning
from fl_app.data.site_check import check_site, split_site
from fl_app.deployment.connection import Connection, probe
from fl_app.deployment.kit import Kit, look_at_kit
from fl_app.errors import UserError
from fl_app.result import software_versions
from fl_app.site import SiteSettings
from fl_app.site_limits import refusals
from fl_app.versions import incompatibility

if TYPE_CHECKING:
    import torch

_GIB = 2**30
_LOW_MEMORY_BYTES = 4 * _GIB  # a U-Net on 96^3 patches trains in it
_LOW_DISK_BYTES = 5 * _GIB  # a prepared case takes 30 to 100 MB


@dataclass
class Preflight:
    """What was found.

    Attributes:
        facts: what is so, by subject.
        findings: what is wrong or doubtful.
        unchecked: what could not be checked, and why.
    """

    facts: dict[str, str] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)
    unchecked: list[str] = field(default_factory=list)

    @property
    def good(self) -> bool:
        """Whether nothing speaks against starting."""
        return not any(finding.severity == "error" for finding in self.findings)

    def as_dict(self) -> dict[str, Any]:
        """For scripts."""
        findings = [dataclasses.asdict(finding) for finding in self.findings]
        return {"good": self.good, "facts": self.facts, "findings": findings, "unchecked": self.unchecked}


def check_client(folder: Path, settings: SiteSettings, job: Job | None = None) -> Preflight:
    """Look at a site from all sides; nothing is started or changed.

    Args:
        folder: the site's kit.
        settings: the site's settings.
        job: what the data and the site's limits are checked against; none: the data against default settings.

    Raises:
        UserError: the kit is none, so that there is nothing to check.
    """
    found = Preflight()
    kit = look_at_kit(folder, "site")
    _check_kit(kit, found)
    if kit.report.problems:
        found.unchecked.append("connection: the kit is not to be used")
    else:
        _check_connection(probe(kit), found)
    _check_data(settings, job, found)
    _check_device(settings, job, found)
    _check_folders(settings, found)
    found.facts["versions"] = ", ".join(f"{name} {version}" for name, version in software_versions().items())
    return found


def _check_kit(kit: Kit, found: Preflight) -> None:
    report = kit.report
    found.facts["site"] = f"{kit.name}, {report.organisation}, in {report.consortium}"
    found.facts["server"] = f"{report.server} ({kit.scheme} in TLS)"
    if report.valid_until:
        found.facts["certificate"] = f"until {report.valid_until:%Y-%m-%d}, {report.days_left} days left"
    found.findings += [
        error("kit", str(kit.folder), problem, f"ask the lead of {report.consortium} for a new kit")
        for problem in report.problems
    ]
    if kit.warning and not report.problems:
        problem, _, remedy = kit.warning.partition(" - ")
        found.findings.append(warning("certificate-expires", "startup/client.crt", problem, remedy))
    # without the server, the version that made the kit is the best guess at the server's
    if incompatibility(kit.fedspleen):
        found.findings.append(
            warning(
                "version",
                "kit.json",
                f"the kit was made by fedspleen {kit.fedspleen}, installed here is {software_versions()['fedspleen']}",
                "install the version that the server runs: another major or minor version is refused",
            )
        )


def _check_connection(connection: Connection, found: Preflight) -> None:
    found.findings += connection.findings
    steps = {
        "name": "the server's name resolves",
        "port": "its port is reachable",
        "tls": "TLS works, the certificate is the server's",
        "accepted": "the server accepts this site's certificate",
    }
    reached = [words for step, words in steps.items() if step in connection.reached]
    found.facts["connection"] = "; ".join(reached) or "none"
    found.unchecked += [f"that {words}" for step, words in steps.items() if step not in connection.reached]
    if connection.clock is None:
        found.unchecked.append("this machine's clock: only the running server tells the time")
    else:
        found.facts["clock"] = f"{connection.clock:+.1f} s from the server's"


def _check_data(settings: SiteSettings, described: Job | None, found: Preflight) -> None:
    job = described or Job()
    try:
        # without a cache: a check writes nothing
        found.findings += check_site(settings.data, job.data, None, settings.cases)
        parts = split_site(settings.data, job.data, job.seed, settings.cases)
    except UserError as problem:
        # the first line says what is wrong; others list what is understood, as docs/data.md does
        what = str(problem).splitlines()[0].removesuffix(" Understood are:")
        found.findings.append(error("data", str(settings.data), what, "see docs/data.md for what is understood"))
        return
    counts = ", ".join(f"{len(cases)} {part}" for part, cases in parts.items())
    found.facts["data"] = f"{settings.data}: {counts} cases"
    remedy = "let the lead change the job, or change the key in site.yaml; as it is, the site takes no part in this job"
    against = refusals(described, settings, len(parts["training"])) if described else []
    found.findings += [error("limits", "site.yaml", reason, remedy) for reason in against]


def _check_device(settings: SiteSettings, job: Job | None, found: Preflight) -> None:
    import torch

    from fl_app.training.device import choose_devices

    memory = psutil.virtual_memory().available
    try:
        device = choose_devices(settings.device, settings.processes)[0]
    except UserError as problem:
        found.findings.append(
            error("device", "site.yaml", str(problem), "change `device:` or `processes:`, or check the GPU's driver")
        )
        return
    name = "processor"
    if device.type == "cuda":
        memory, total = torch.cuda.mem_get_info(device)
        name = f"{torch.cuda.get_device_name(device)} ({total / _GIB:.0f} GiB)"
    threads = settings.threads or len(os.sched_getaffinity(0))
    found.facts["device"] = f"{name}, {memory / _GIB:.1f} GiB free, {threads} processor threads"
    if settings.processes > 1:
        found.facts["device"] += f", {settings.processes} processes"
    if job and found.good:
        _check_training(settings, job, device, found)
    elif job:
        found.unchecked.append("what training takes of the memory: there are errors to mend first")
    if settings.memory_budget_gib and settings.memory_budget_gib * _GIB > memory:
        found.findings.append(
            warning(
                "memory-budget",
                "site.yaml",
                f"memory_budget_gib is {settings.memory_budget_gib:g}, {memory / _GIB:.1f} GiB are free",
                "end other programs on this device, or set `memory_budget_gib:` to less",
            )
        )
    if memory < _LOW_MEMORY_BYTES:
        found.findings.append(
            warning(
                "memory",
                settings.device,
                f"{memory / _GIB:.1f} GiB of memory are free, {_LOW_MEMORY_BYTES / _GIB:.0f} are advisable",
                "end other programs on this device, or ask the lead for smaller patches or batches",
            )
        )


def _check_training(settings: SiteSettings, job: Job, device: torch.device, found: Preflight) -> None:
    """Take a training step or two of the job's network, on random patches."""
    from fl_app.training.device import memory_budget
    from fl_app.training.fitting import fit_training, too_large
    from fl_app.training.leader import team_size

    budget = memory_budget(settings.memory_budget_gib, device)
    fit = fit_training(job, device, budget, processes=team_size(job, settings.processes))
    found.facts["training"] = f"the job's network takes {fit.words}"
    if not fit.fits and not job.search.wanted:
        what, _, remedy = too_large(fit, budget).partition(" - ")
        found.findings.append(error("memory-budget", "site.yaml", what, remedy))


def _check_folders(settings: SiteSettings, found: Preflight) -> None:
    for name, folder in (("cache", settings.cache), ("output", settings.output)):
        if folder is None:
            continue
        existing = next(parent for parent in (folder, *folder.parents) if parent.exists())
        if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
            found.findings.append(
                error("folder", str(folder), f"the {name} folder cannot be written", f"set `{name}:` in site.yaml")
            )
            continue
        free = shutil.disk_usage(existing).free
        found.facts[name] = f"{folder}, {free / _GIB:.0f} GiB free"
        if free < _LOW_DISK_BYTES:
            found.findings.append(
                warning(
                    "disk",
                    str(folder),
                    f"{free / _GIB:.1f} GiB are free, {_LOW_DISK_BYTES / _GIB:.0f} are advisable",
                    f"make room, or set `{name}:` in site.yaml to a folder on another disk",
                )
            )
