"""What must be known of a finished run: how it falls short of what was asked for, and what else to keep in mind."""

from __future__ import annotations

from collections import Counter

from fl_app.result import Result, Round


def shortfalls(result: Result) -> list[str]:
    """How a finished run is not what was asked for; empty if it is. Commands then end with exit code 3."""
    found = []
    if result.refused:
        found.append(f"without {_names(set(result.refused))}, which could take no part")
    never = result.sites.keys() - {site for done in _rounds(result) for site in _trained(done)} - result.refused.keys()
    if never:
        found.append(f"no update of {_names(never)} is in the model")
    best, start = _best(result), result.initial_metrics.get(result.config["federation"]["best_metric"])
    # a job without steps only measures
    if result.config["training"]["steps_per_round"] and best is not None and best <= (start or 0):
        found.append("the best model is no better than the untrained network: nothing was learned")
    untested = (result.final.left_out.keys() if result.final else set()) - result.refused.keys()
    if untested:
        found.append(f"the model was not tested at {_names(untested)}")
    alone = (result.personal.left_out.keys() if result.personal else set()) - result.refused.keys()
    if alone:
        found.append(f"no model of its own was made at {_names(alone)}")
    return found


def find_caveats(result: Result) -> list[str]:
    """What must be known before a finished run's numbers are believed; empty if there is nothing."""
    found = shortfalls(result)
    if result.config["data"]["reuse_cases"]:
        found.append(
            "all sites trained, validated and tested on the same cases: the Dice says nothing of other patients"
        )
    for site, (missed, rounds) in sorted(_missed(result).items()):
        if missed < rounds:
            found.append(f"{missed} of {rounds} rounds went without {site}")
    lost = {site for restart in result.restarts for site in restart.lost_state}
    lost |= {each.site for each in result.returns if each.restored is False}
    if lost:
        found.append(f"{_names(lost)} went on without its own state (optimiser, local layers), which was lost")
    return found


def _rounds(result: Result) -> list[Round]:
    searched = [*result.search.supernet_rounds, *result.search.rounds] if result.search else []
    return [*result.rounds, *searched]


def _trained(done: Round) -> list[str]:
    """Whose updates have counted; with a job without steps, too."""
    return [site for site, each in done.sites.items() if each.steps or each.weight]


def _missed(result: Result) -> dict[str, tuple[int, int]]:
    """For each site that was ever left out: in how many rounds, and of how many that it should have been in."""
    missed = Counter(site for done in _rounds(result) for site in done.left_out)
    took_part = Counter(site for done in _rounds(result) for site in _trained(done))
    return {site: (count, count + took_part[site]) for site, count in missed.items()}


def _best(result: Result) -> float | None:
    """The best-model metric of the model that the run ends with; none if there is no model."""
    if result.final:
        return result.final.best_value
    metric = result.config["federation"]["best_metric"]
    found = [done.metrics.get(metric) for done in result.search.rounds] if result.search else []
    return max((value for value in found if value is not None), default=None)


def _names(sites: set[str]) -> str:
    return ", ".join(sorted(sites))
