"""A site that comes when a search is over: the best network for its budget, without a new search."""

from __future__ import annotations

from pathlib import Path

from clients.work import SiteWork
from fl_app.config import Job
from fl_app.errors import BudgetError, UsageError
from fl_app.messages import DERIVE, MAIN, PERSONALISE, PREPARE, SEARCHED, SUPERNET, PersonalReport, SearchReady
from fl_app.model_file import load_model
from fl_app.networks.space.architecture import read_architecture
from fl_app.networks.space.supernet import weight_names
from fl_app.site import SiteSettings


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
    supernet, info = load_model(models / SEARCHED / "supernet.safetensors")
    facts = {"network": SUPERNET, "consensus": info.architectures[0]}
    try:
        work, fits = _prepared(_choosing(info.job, "nested"), site, settings)
        chosen = work.do(DERIVE, supernet, facts)[1]["architecture"]
    except BudgetError:
        work, fits = _prepared(_choosing(info.job, "free"), site, settings)
        chosen = work.do(DERIVE, supernet, facts)[1]["architecture"]
    names = weight_names(info.job.search.space, read_architecture(chosen, info.job.search.space))
    values = {f"{SEARCHED}/{name}": supernet[name] for name in names}
    networks = {SEARCHED: {"network": SEARCHED, "architecture": chosen, "own": [], "round": info.round}}
    if fits and (models / "best.safetensors").exists():
        main, main_info = load_model(models / "best.safetensors")
        values |= {f"{MAIN}/{name}": value for name, value in main.items()}
        networks[MAIN] = {"network": MAIN, "architecture": "", "own": [], "round": main_info.round}
    _, report = work.do(PERSONALISE, values, {"networks": networks, "consensus": info.architectures[0]})
    return PersonalReport.model_validate(report)


def _choosing(job: Job, mode: str) -> Job:
    search = job.search.model_copy(update={"mode": mode, "strategy": "sampling"})
    return job.model_copy(update={"search": search})


def _prepared(job: Job, site: str, settings: SiteSettings) -> tuple[SiteWork, bool]:
    """The site's part in a job, and whether its memory holds the job's own network."""
    work = SiteWork(job, site, settings)
    search = work.do(PREPARE, {}, {})[1]["search"]
    return work, SearchReady.model_validate(search).main_fits
