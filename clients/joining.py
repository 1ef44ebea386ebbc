"""A site that comes when a search is over: the best network for its budget, without a new search."""

from __future__ import annotations

from pathlib import Path

import torch

from clients.work import SiteWork
from fl_app.config import Job
from fl_app.errors import BudgetError, UsageError
from fl_app.messages import DERIVE, MAIN, PERSONALISE, PREPARE, SEARCHED, SUPERNET, PersonalReport, SearchReady
from fl_app.model_file import ModelInfo, load_model
from fl_app.networks.found import read_found, value_names
from fl_app.networks.widths import Width
from fl_app.site import SiteSettings

Values = dict[str, torch.Tensor]
Chosen = tuple[SiteWork, bool, str]  # the site's part, whether its memory holds the job's own network, and what it took


def join(models: Path, site: str, settings: SiteSettings) -> PersonalReport:
    """Choose a network with the weights that the others have trained, tune it, keep what this site's cases like best.

    The network holds the consensus where that fits, so that it makes use of what all have trained.

    Args:
        models: the folder ``model`` of a finished search's result.
        site: the site's name.
        settings: the site's; the models' scores and the one that is kept go into its output folder.

    Raises:
        UsageError: there was no search.
        DataError: a model file is damaged, or the site's data cannot be used.
        BudgetError: no network of the space fits the site's budget.
    """
    if not (models / SEARCHED / "supernet.safetensors").exists():
        raise UsageError(
            f"{models}: there is no searched/supernet.safetensors - name the result of a job with a search"
        )
    trained, info = load_model(models / SEARCHED / "supernet.safetensors")
    work, fits, chosen = (_of_cells if info.job.search.of_cells else _of_widths)(trained, info, site, settings)
    values = {f"{SEARCHED}/{name}": trained[name] for name in value_names(info.job, read_found(chosen, info.job))}
    consensus = info.architectures[0]
    about = {"network": SEARCHED, "architecture": chosen, "own": [], "consensus": consensus}
    networks = {SEARCHED: {**about, "round": info.round, "score": info.score}}
    if fits and (models / "best.safetensors").exists():
        main, main_info = load_model(models / "best.safetensors")
        values |= {f"{MAIN}/{name}": value for name, value in main.items()}
        about = {"network": MAIN, "architecture": "", "own": [], "consensus": ""}
        networks[MAIN] = {**about, "round": main_info.round, "score": main_info.score}
    _, report = work.do(PERSONALISE, values, {"networks": networks, "consensus": consensus})
    return PersonalReport.model_validate(report)


def _of_cells(supernet: Values, info: ModelInfo, site: str, settings: SiteSettings) -> Chosen:
    facts = {"network": SUPERNET, "consensus": info.architectures[0]}
    try:
        work, ready = _prepared(_choosing(info.job, "nested"), site, settings)
        chosen = work.do(DERIVE, supernet, facts)[1]["architecture"]
    except BudgetError:
        work, ready = _prepared(_choosing(info.job, "free"), site, settings)
        chosen = work.do(DERIVE, supernet, facts)[1]["architecture"]
    return work, ready.main_fits, chosen


def _of_widths(trained: Values, info: ModelInfo, site: str, settings: SiteSettings) -> Chosen:
    """The widest network that fits, of those whose values several sites have trained."""
    work, ready = _prepared(info.job, site, settings)
    assert ready.widest is not None  # the job asks for it
    for eighths in range(ready.widest.eighths, 0, -1):
        if trained.keys() >= set(value_names(info.job, Width(eighths))):
            return work, ready.main_fits, Width(eighths).to_json()
    raise BudgetError(
        f"the widest network that fits here has {ready.widest.eighths} eighths of the job's width, and none so "
        "narrow was trained by several sites - raise memory_budget_gib",
        ready.widest.measured_bytes,
    )


def _choosing(job: Job, mode: str) -> Job:
    search = job.search.model_copy(update={"mode": mode, "strategy": "sampling"})
    return job.model_copy(update={"search": search})


def _prepared(job: Job, site: str, settings: SiteSettings) -> tuple[SiteWork, SearchReady]:
    """The site's part in a job, and what its memory holds."""
    work = SiteWork(job, site, settings)
    return work, SearchReady.model_validate(work.do(PREPARE, {}, {})[1]["search"])
