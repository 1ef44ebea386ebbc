"""What happened in a run, in a few plain sentences; nothing is said that was not measured."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fl_app.reports.models import model_rows
from fl_app.reports.statistics import Estimate, pooled_estimate
from fl_app.reports.words import count, duration, listed, score, sentence
from fl_app.result import Result, Round, SiteScores

Tone = Literal["good", "caution", "bad", "neutral"]


@dataclass(frozen=True)
class Verdict:
    """Whether the federation was worth it.

    Attributes:
        tone: how it is to be taken.
        title: in one line.
        text: with the numbers.
    """

    tone: Tone
    title: str
    text: str


def done_rounds(result: Result) -> int:
    """Rounds whose model was saved."""
    return sum(1 for done in told_rounds(result) if done.seconds)


def told_rounds(result: Result) -> list[Round]:
    """The rounds that a run is told by: of the job's network, or if it has none, of what a search finds."""
    return result.search.rounds if result.search and not result.rounds_asked else result.rounds


def asked_rounds(result: Result) -> int:
    """How many of these the job asks for."""
    return int(result.rounds_asked or result.config["search"]["rounds"])


def opening(result: Result) -> str:
    """Who trained what, how long, and with which result."""
    organs = listed(f"the {organ}" for organ in result.config["data"]["labels"])
    size = f", {result.parameters / 1e6:.1f} million parameters" if result.parameters else ""
    network = f"one network ({result.config['network']['name']}{size})"
    rounds, sites = done_rounds(result), count(len(result.sites), "site")
    if not result.sites:
        return f"No site had begun to train {network} for {organs}."
    if result.status == "finished":
        first = f"{sentence(sites)[:-1]} trained {network} to segment {organs} in CT, "
        first += f"in {count(rounds, 'round')} and {duration(result.seconds)}, without sharing an image."
    else:
        first = f"{sentence(sites)[:-1]} were training {network} to segment {organs} in CT; "
        first += f"{rounds} of {asked_rounds(result)} rounds were complete after {duration(result.seconds)}."
    return f"{first} {_reached(result)}".strip()


def _reached(result: Result) -> str:
    final = result.final
    if final and final.mean_dice is not None:
        overall = pooled_estimate(final.sites.values())
        cases = overall.cases if overall else 0
        return (
            f"Its best model, of round {final.round}, reaches a mean Dice of {score(final.mean_dice)}"
            f"{_interval(overall)} on {count(cases, 'test case')} that no site had trained on."
        )
    known = [(done.dice, done.number) for done in result.rounds if done.dice is not None]
    if known:
        best, number = max(known)
        return f"The best validation Dice was {score(best)}, after round {number}; no model was tested."
    return ""


def _interval(estimate: Estimate | None) -> str:
    if estimate is None or not estimate.has_interval:
        return ""
    return f" (95 % interval {estimate.low:.2f} to {estimate.high:.2f})"


def verdict(result: Result) -> Verdict | None:
    """Whether the federated model beat training alone; none before there is a tested model."""
    rows = {row.kind: row for row in model_rows(result) if not row.kind.startswith("one")}
    if "federated" not in rows or result.final is None or result.final.mean_dice is None:
        return None
    if "local" not in rows:
        return Verdict(
            "neutral",
            "Whether it beats training alone was not measured",
            "This run trained no model at a single site to compare with. In a simulation --compare does.",
        )
    pairs = {
        name: (federated.dice, alone.dice)
        for name, alone in rows["local"].scores.items()
        if (federated := rows["federated"].scores.get(name)) and federated.dice is not None and alone.dice is not None
    }
    together = pooled_estimate(rows["federated"].scores[name] for name in pairs)
    alone = pooled_estimate(rows["local"].scores[name] for name in pairs)
    if not together or not alone:
        return None
    won = [name for name, (federated, local) in pairs.items() if (federated or 0) > (local or 0)]
    centralised, kept = (rows[kind].scores if kind in rows else {} for kind in ("centralised", "personalised"))
    return _compared(together, alone, won, list(pairs), centralised, kept)


def _compared(
    together: Estimate,
    alone: Estimate,
    won: list[str],
    names: list[str],
    centralised: dict[str, SiteScores],
    kept: dict[str, SiteScores],
) -> Verdict:
    everywhere = len(won) == len(names)
    whom = "at every site" if everywhere else f"at {len(won)} of {len(names)} sites" if won else "at no site"
    text = (
        f"Mean test Dice {together.mean:.3f} together, {alone.mean:.3f} when each site trains by itself; "
        f"higher {whom}{f' ({listed(won)})' if won and not everywhere else ''}."
    )
    if centralised:
        pooled = pooled_estimate(centralised[name] for name in names if name in centralised)
        text += f" With all cases in one place, {pooled.mean:.3f}." if pooled else ""
    if kept:
        pooled = pooled_estimate(kept[name] for name in names if name in kept)
        text += f" With the personal model that each site keeps, {pooled.mean:.3f}." if pooled else ""
    sure = together.low > alone.high or alone.low > together.high
    if not sure:
        text += (
            f" The 95 % intervals overlap ({together.low:.2f} to {together.high:.2f}, {alone.low:.2f} to "
            f"{alone.high:.2f}): with {count(together.cases, 'test case')} the difference may be chance."
        )
    better = together.mean > alone.mean
    if everywhere:
        title = "Better than training alone, at every site"
    elif better:
        title = "Better than training alone on average, but not at every site"
    elif won:
        title = "Not better than training alone on average, but at some sites"
    else:
        title = "Not better than training alone"
    return Verdict("good" if everywhere and sure else "caution" if better else "bad", title, text)


def ending(result: Result) -> Verdict | None:
    """How a run that did not finish ended; none for one that did."""
    rounds = f"{done_rounds(result)} of {asked_rounds(result)} rounds were complete"
    if result.status == "failed":
        return Verdict("bad", "This run failed", f"{sentence(result.error or 'no reason was recorded')} {rounds}.")
    if result.status == "interrupted":
        return Verdict("bad", "This run was interrupted", f"{sentence(result.error or 'it was ended')} {rounds}.")
    if result.status == "running":
        return Verdict(
            "neutral", "This run is still going on", f"{sentence(rounds)} Make the report again when it has ended."
        )
    return None
