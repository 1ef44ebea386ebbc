"""``report.html``: one self-contained page about a run, made from ``result.json`` alone."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from fl_app.config.space import SearchSpace
from fl_app.files import replacing
from fl_app.networks.space.architecture import read_architecture
from fl_app.networks.space.drawing import draw
from fl_app.reports import charts, words
from fl_app.reports.models import ModelRow, model_rows
from fl_app.reports.statistics import Estimate, estimate, pooled_estimate
from fl_app.reports.story import asked_rounds, ending, opening, told_rounds, verdict
from fl_app.result import Result, Round, read_result

REPORT = "report.html"


@dataclass(frozen=True)
class Drawing:
    """A picture of a network's architecture.

    Attributes:
        title: whose architecture it is.
        svg: the drawing; it is embedded as an image, so nothing in it can run or load anything.
    """

    title: str
    svg: str

    @property
    def address(self) -> str:
        """The drawing inside the page."""
        return embedded(self.svg.encode(), "svg+xml")


def write_report(folder: Path, out: Path | None = None) -> Path:
    """Make the page of a run, whatever its state; in a simulation, also the page of each site.

    Args:
        folder: a result folder.
        out: where to write the page; none: ``report.html`` in the folder.

    Returns:
        Where the page is.

    Raises:
        DataError: there is no result in the folder, or it cannot be read.
    """
    from fl_app.reports.site_page import SCORES, write_site_report

    result = read_result(folder / "result.json")
    for scores in sorted(folder.glob(f"sites/*/{SCORES}")):
        write_site_report(scores.parent)
    sites = {path.parent.name for path in folder.glob(f"sites/*/{REPORT}")} if out is None else set()
    drawings = _drawings(result)
    page = out or folder / REPORT
    write_page(page, render_run(result, drawings, sites))
    return page


def _drawings(result: Result) -> list[Drawing]:
    """The networks that a search has found, each with all who take it."""
    if result.search is None or result.search.consensus is None or result.config["search"]["strategy"] == "width":
        return []
    space = SearchSpace.model_validate(result.config["search"]["space"])
    takers: dict[str, list[str]] = {result.search.consensus: []}
    for site in sorted(result.search.sites, key=words.by_name):
        if result.search.sites[site].architecture:
            takers.setdefault(result.search.sites[site].architecture, []).append(site)
    return [
        Drawing(words.listed(who) or "all sites in common", draw(read_architecture(text, space), space))
        for text, who in takers.items()
    ]


def render_run(result: Result, drawings: list[Drawing] | None = None, site_pages: set[str] | None = None) -> str:
    """The page of a run as HTML.

    Args:
        result: what is told.
        drawings: architectures, where there was a search.
        site_pages: sites whose own page lies in ``sites/NAME/``; only in a simulation.
    """
    result = _in_order(result)
    styles = charts.site_styles(result)
    rows = model_rows(result)
    asked = max(result.rounds_asked, len(result.rounds))
    found = result.search.rounds if result.search else []
    return (
        environment()
        .get_template("run.html")
        .render(
            title=result.name,
            result=result,
            ending=ending(result),
            opening=opening(result),
            verdict=verdict(result) if result.status == "finished" else None,
            figures=_figures(result),
            styles=styles,
            dice_chart=charts.dice_by_round(result.rounds, asked, styles, result.initial_dice),
            loss_chart=charts.loss_by_round(result.rounds, asked, styles),
            search_chart=charts.dice_by_round(found, len(found), styles),
            seconds_chart=charts.seconds_by_round(result, styles),
            tests=charts.tests_by_site(result, styles),
            models=[(row, _cells(row, list(result.final.sites))) for row in rows] if result.final else [],
            kinds=[(f"model-{row.kind}", _KINDS[row.kind]) for row in rows if row.kind in _KINDS],
            comparison=charts.models_by_site(rows, result) if len(rows) > 1 else None,
            time=charts.time_by_site(result),
            stages=_stages(result),
            spent=charts.spent(result),
            absences=_absences(result),
            memory=_memory(result),
            withheld=_withheld(result),
            site_pages=sorted(site_pages or ()),
            drawings=drawings or [],
            config=yaml.safe_dump(result.config, sort_keys=False, default_flow_style=None, width=88),
        )
    )


def _in_order(result: Result) -> Result:
    """The same result, tested sites in the order of their names: site-2 before site-10."""
    if result.final is None:
        return result
    sites = dict(sorted(result.final.sites.items(), key=lambda entry: words.by_name(entry[0])))
    return result.model_copy(update={"final": result.final.model_copy(update={"sites": sites})})


def environment() -> Environment:
    """Templates and what they can say; everything from a result is escaped."""
    made = Environment(
        loader=PackageLoader("fl_app.reports"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {
        "count_of": words.count,
        "score": words.score,
        "duration": words.duration,
        "size": words.size,
        "sentence": words.sentence,
        "listed": words.listed,
    }
    style, _, _ = PackageLoader("fl_app.reports").get_source(made, "style.css")
    made.globals["style"] = Markup(style)  # ours, no user's text
    return made


def embedded(content: bytes, kind: str) -> str:
    """An image as part of the page; ``kind`` such as png or svg+xml."""
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def write_page(path: Path, text: str) -> None:
    """Write a page; a reader at any instant sees the old one or the new one."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _absences(result: Result) -> list[tuple[str, str, str]]:
    """(when, site, why) of every answer that is missing or does not count as it was."""
    search = result.search
    phases = [("round", result.rounds)]
    if search:
        phases += [("supernet, round", search.supernet_rounds), ("searched, round", search.rounds)]
    found = [
        (f"{phase} {done.number}", name, reason)
        for phase, rounds in phases
        for done in rounds
        for name, reason in sorted({**done.remarks, **done.left_out}.items())
    ]
    for when, told in (("test", result.final), ("personal models", result.personal)):
        found += [(when, name, reason) for name, reason in (told.left_out if told else {}).items()]
    return found


def _all_rounds(result: Result) -> list[Round]:
    search = result.search
    return [*result.rounds, *(search.supernet_rounds + search.rounds if search else ())]


def _memory(result: Result) -> dict[str, int]:
    """The most bytes that each site's process held in training; 0 where nothing was measured."""
    return {
        name: max((done.sites[name].memory_bytes for done in _all_rounds(result) if name in done.sites), default=0)
        for name in result.sites
    }


def _withheld(result: Result) -> str:
    """What the sites kept to themselves, by the job."""
    kept = ["images, labels and scores of single cases"]
    if result.config["federation"]["normalisation"] == "local":
        kept.append("the normalisation layers")
    if result.config["personal"]["ditto"]:
        kept.append("a second network for the site alone (Ditto)")
    if result.search and any(site.own_values for site in result.search.sites.values()):
        kept.append("what the network of one site alone holds")
    return f"What stayed at the sites: {words.listed(kept)}."


def _figures(result: Result) -> list[tuple[str, str, str]]:
    """The few numbers at the top: (what, value, remark)."""
    cases = [sum(getattr(site, f"{part}_cases") for site in result.sites.values()) for part in _PARTS]
    traffic = sum(site.bytes_sent + site.bytes_received for done in _all_rounds(result) for site in done.sites.values())
    begun = len(told_rounds(result))
    rounds = words.count(begun, "round")
    if result.status != "finished":
        rounds = f"{begun} of {asked_rounds(result)} rounds begun"
    refused = f"{len(result.refused)} refused" if result.refused else "none refused"
    figures = [
        ("Sites", str(len(result.sites)), refused),
        ("Cases", str(sum(cases)), " · ".join(f"{n} {part}" for n, part in zip(cases, _PARTS, strict=True))),
        ("Time", words.duration(result.seconds), rounds),
        ("Exchanged", words.size(traffic), f"{words.size(result.exchanged_bytes)} a whole model"),
    ]
    if result.final:
        final = result.final
        figures.insert(
            0, ("Test Dice", words.score(final.mean_dice), f"mean of sites {words.score(final.mean_dice_over_sites)}")
        )
        tolerance = result.config["evaluation"]["surface_tolerance_mm"]
        figures.insert(1, ("Surface Dice", words.score(final.mean_surface_dice), f"within {tolerance:g} mm"))
    return figures


def _stages(result: Result) -> list[tuple[str, float]]:
    """(what, seconds) of the parts of a run that searched; the rounds' own split does not show them."""
    search = result.search
    if search is None:
        return []
    own, found = (sum(done.seconds for done in rounds) for rounds in (result.rounds, search.rounds))
    return [("the rounds of the job's network", own), ("the search", search.seconds), ("training what it found", found)]


_KINDS = {
    "local": "local: the site's own model",
    "federated": "federated",
    "personalised": "personalised: what each site keeps",
    "centralised": "centralised",
}
_PARTS = ("training", "validation", "test")


def _cells(row: ModelRow, names: list[str]) -> list[Estimate | None]:
    """A row of the table of models: each site's cases, then all."""
    known: dict[str, Any] = row.scores
    return [*(estimate(known[name]) if name in known else None for name in names), pooled_estimate(known.values())]
