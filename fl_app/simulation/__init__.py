"""A whole federation on this machine: data for the sites, FLARE's simulator, and one folder with the result."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import yaml

from fl_app.config_file import load_job
from fl_app.errors import ConfigError, FederationError, UsageError
from fl_app.result import RESULT_VARIABLE, Result, read_result, write_result
from fl_app.simulation.federation import compare_with_baselines, federate, has_spaces
from fl_app.simulation.parts import Events, Simulation
from fl_app.simulation.sites import check_data, fit_as_processes, locate, settings_of, threads_of_each
from fl_app.site import SITE_FILE_VARIABLE, write_site

__all__ = ["Events", "Simulation", "resume_simulation", "run_simulation"]


def run_simulation(simulation: Simulation, events: Events, compare: bool = False) -> Result:
    """Run a federation to its end.

    Raises:
        UserError: with the cause; what was reached until then is in ``simulation.out``.
    """
    out = simulation.out
    if (out / "result.json").exists():
        raise UsageError(f"--out {out}: holds the result of another run - name a new folder")
    if has_spaces(Path(sys.executable)) and not simulation.one_process:
        raise UsageError(
            f"{sys.executable}: FLARE's simulator needs a Python in a folder without spaces - move it, or --one-process"
        )
    if simulation.device not in ("auto", "cpu"):
        from fl_app.training.device import choose_device  # imports torch: seconds that other runs need not wait

        choose_device(simulation.device)
    located = locate(simulation, events)
    turns = _take_turns(len(located), simulation.one_process, events)
    sites = settings_of(simulation, located, threads_of_each(1 if turns else len(located)))
    quorum = simulation.job.federation.min_sites
    if quorum > len(sites):
        raise ConfigError(f"federation.min_sites: {quorum} - at most {len(sites)}, since that many sites take part")
    check_data(simulation.job, sites, events)
    for name, settings in sites.items():
        write_site(out / "sites" / name / "site.yaml", settings)
    (out / "job.yaml").write_text(yaml.safe_dump(simulation.job.model_dump(mode="json"), sort_keys=False))
    return _run(out, list(sites), turns, events, compare)


def resume_simulation(out: Path, events: Events, compare: bool = False, one_process: bool = False) -> Result:
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
    return _run(out, sites, _take_turns(len(sites), one_process, events), events, compare)


def _take_turns(sites: int, wanted: bool, events: Events) -> bool:
    """Whether the sites take turns in one process."""
    if not wanted and not fit_as_processes(sites):
        events.say(f"the free memory does not hold {sites} processes: the sites take turns in one, without FLARE")
        return True
    return wanted


def _run(out: Path, sites: list[str], turns: bool, events: Events, compare: bool) -> Result:
    environment = {
        SITE_FILE_VARIABLE: str(out.absolute() / "sites" / "{site}" / "site.yaml"),
        # each site gets its share of the processor, in NumPy's and SciPy's libraries as well
        "OMP_NUM_THREADS": str(threads_of_each(1 if turns else len(sites))),
        RESULT_VARIABLE: str(out.absolute()),
    }
    federate(out, sites, turns, environment, events)
    result = read_result(out / "result.json")
    if result.status != "finished":
        raise FederationError(f"{result.error or 'the server ended early'} (logs: {out / 'logs'})")
    if compare:
        compare_with_baselines(out, sites, events)
        result = read_result(out / "result.json")
    return result
