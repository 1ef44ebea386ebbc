"""Which models a result holds scores of: the rows of every table and chart that compares them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fl_app.result import KeptModel, Result, SiteScores

Kind = Literal["local", "one local", "federated", "personalised", "one personal", "centralised"]


@dataclass(frozen=True)
class ModelRow:
    """A model, or each site's own, under every site's test cases.

    Attributes:
        label: what the row is called.
        kind: how it was trained; "local" pairs each site with its own model, "one local" is one site's everywhere;
            "personalised" is what each site keeps, "one personal" a kind of model that sites could keep.
        steps: optimiser steps, in words.
        scores: by site.
    """

    label: str
    kind: Kind
    steps: str
    scores: dict[str, SiteScores]


def model_rows(result: Result) -> list[ModelRow]:
    """All models of a tested run: training alone where it was measured, the federation, all cases in one place."""
    final = result.final
    if final is None:
        return []
    alone = {name: result.baselines[f"local-{name}"] for name in final.sites if f"local-{name}" in result.baselines}
    steps = sorted({baseline.steps for baseline in alone.values()})
    taken = f"{sum(site.steps for done in result.rounds for site in done.sites.values())}"
    rows = []
    if alone:
        taken = f"{len(final.sites)} x {' / '.join(map(str, steps))}"
        own = {name: baseline.sites[name] for name, baseline in alone.items() if name in baseline.sites}
        rows.append(ModelRow("local: each site's own", "local", " / ".join(map(str, steps)), own))
        rows += [
            ModelRow(f"{name}'s model", "one local", str(baseline.steps), baseline.sites)
            for name, baseline in alone.items()
        ]
    rows.append(ModelRow("federated", "federated", taken, final.sites))
    rows += _personal_rows(result)
    if "centralised" in result.baselines:
        centralised = result.baselines["centralised"]
        rows.append(ModelRow("centralised", "centralised", str(centralised.steps), centralised.sites))
    return rows


def _personal_rows(result: Result) -> list[ModelRow]:
    """What each site keeps, then each kind of model that it could have kept beside the federated one."""
    if result.personal is None:
        return []
    sites = result.personal.sites
    kept = {name: site.models[site.chosen] for name, site in sites.items()}
    rows: list[tuple[str, Kind, dict[str, KeptModel]]] = [("personalised: what each site keeps", "personalised", kept)]
    for kind in dict.fromkeys(kind for site in sites.values() for kind in site.models if kind != "federated"):
        rows.append(
            (kind, "one personal", {name: site.models[kind] for name, site in sites.items() if kind in site.models})
        )
    return [
        ModelRow(
            label,
            kind,
            " / ".join(str(steps) for steps in sorted({model.steps for model in models.values()})),
            {name: model.scores for name, model in models.items()},
        )
        for label, kind, models in rows
    ]
