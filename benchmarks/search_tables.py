"""The tables of `benchmarks.architecture_search`, from the runs in its folder."""

from __future__ import annotations

import csv
import json
import statistics
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from scipy.stats import wilcoxon

from fl_app.training.reporting import case_file

# rows of the table: the run, and the model in it
ROWS = (
    ("local", "local"),
    ("local in budget", "local in budget"),
    ("centralised", "centralised"),
    ("unet", "federated"),
    ("unet", "federated tuned"),
    ("unet", "federated tuned to the end"),
    ("unet in budget", "federated"),
    ("unet in budget", "federated tuned"),
    ("unet in budget", "taken home"),
    ("unet half in budget", "federated"),
    ("unet half in budget", "federated tuned"),
    ("ditto", "ditto"),
    ("segresnet", "federated"),
    ("segresnet", "federated tuned"),
    ("segresnet half", "federated"),
    ("segresnet half", "federated tuned"),
    ("dynunet", "federated"),
    ("dynunet", "federated tuned"),
    ("dynunet tiny", "federated"),
    ("dynunet tiny", "federated tuned"),
    ("search width", "searched"),
    ("search width", "searched tuned"),
    ("search width half", "searched"),
    ("search width half", "searched tuned"),
    ("search random", "searched"),
    ("search random", "searched tuned"),
    ("search consensus", "searched"),
    ("search consensus", "searched tuned"),
    ("search nested", "searched"),
    ("search nested", "searched tuned"),
    ("search free", "searched"),
    ("search free", "searched tuned"),
    ("search nested", "taken home"),
    ("search width", "taken home"),
    ("search width half", "taken home"),
)
_Cases = dict[tuple[int, str, str, str], float]  # Dice by seed, site, case and organ
# what is to be beaten: the plain network as it is tuned here, as it usually is, and what each site reaches by itself
COMPARED = (
    ("unet", "federated tuned"),
    ("unet", "federated tuned to the end"),
    ("local in budget", "local in budget"),
)


def print_tables(out: Path) -> None:
    """Print the table of all rows, and paired tests over cases against the rows to beat."""
    runs = [json.loads(path.read_text()) for path in sorted(out.glob("seed-*/*.json"))]
    seeds = sorted({run["seed"] for run in runs})
    sites = sorted({site for run in runs for site in run["budgets"]})
    print(
        f"test Dice by site, mean over seeds {', '.join(map(str, seeds))} or as many of them as there are runs (the "
        "first number of a row); means over sites: surface Dice, memory in "
        "MiB (* breaks a budget), millions of parameters, 10^9 operations of a forward pass, a step's time as a share "
        "of the plain U-Net's"
    )
    heads = ["mean", "worst", "spread", "surface", "MiB", "param", "GFLOP", "step"]
    print(f"{'row':<44}{'seeds':>6}" + "".join(f"{head:>8}" for head in [*sites, *heads]))
    for name, model in ROWS:
        found = [run for run in runs if run["name"] == name]
        if not found:
            continue
        picked = [{site: _pick(run["models"].get(site, {}), model) for site in sites} for run in found]
        if not all(each for run in picked for each in run.values()):
            continue
        by_site = [statistics.mean(run[site]["scores"]["dice"] or 0.0 for run in picked) for site in sites]
        means = [statistics.mean(each["scores"]["dice"] or 0.0 for each in run.values()) for run in picked]
        worst = statistics.mean(min(each["scores"]["dice"] or 0.0 for each in run.values()) for run in picked)
        kept = [each for run in picked for each in run.values()]
        surface = statistics.mean(each["scores"]["surface_dice"] or 0.0 for each in kept)
        breaks = any(
            run[site]["memory_bytes"] > whole["budgets"][site]
            for run, whole in zip(picked, found, strict=True)
            for site in sites
        )
        spread = statistics.stdev(means) if len(means) > 1 else 0.0
        line = "".join(f"{value:>8.3f}" for value in by_site)
        label = f"{name}, {model}"
        mebibytes = statistics.mean(each["memory_bytes"] for each in kept) / 2**20
        millions = statistics.mean(each["parameters"] for each in kept) / 1e6
        operations = statistics.mean(each["cost"]["operations"] for each in kept) / 1e9
        step = statistics.mean(each["cost"]["step"] for each in kept)
        print(
            f"{label:<44}{len(found):>6}{line}{statistics.mean(means):>8.3f}{worst:>8.3f}{spread:>8.3f}{surface:>8.3f}"
            f"{mebibytes:>7.1f}{'*' if breaks else ' '}{millions:>8.2f}{operations:>8.1f}{step:>8.2f}"
        )
    _print_costs(runs)
    scores = {row: _cases(out, runs, *row) for row in ROWS}
    for compared in COMPARED:
        _print_tests(scores, compared)


def _pick(models: dict[str, Any], model: str) -> Any:
    if model == "taken home":
        return models.get(models.get("chosen", {}).get("name", ""))
    return models.get(model)


def _print_costs(runs: list[dict[str, Any]]) -> None:
    print(f"\n{'run':<20}{'seconds':>9}{'MB sent':>9}{'search share':>14}{'up / supernet':>15}")
    grouped: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for run in runs:
        grouped[run["name"]].append(run)
    for name, group in grouped.items():
        seconds = statistics.median(run["seconds"] for run in group)
        sent = statistics.median(run["bytes_sent"] for run in group) / 1e6
        share = upload = ""
        if group[0]["search"]:
            share = f"{statistics.median(run['search']['seconds'] / run['seconds'] for run in group):.2f}"
            if group[0]["upload_share"] is not None:
                upload = f"{statistics.median(run['upload_share'] for run in group):.2f}"
        print(f"{name:<20}{seconds:>9.0f}{sent:>9.1f}{share:>14}{upload:>15}")


def _print_tests(scores: Mapping[tuple[str, str], _Cases], compared: tuple[str, str]) -> None:
    """Wilcoxon's signed-rank test over all test cases of all sites and seeds, with Holm's correction."""
    reference = scores[compared]
    if not reference:
        return
    found = []
    for row, cases in scores.items():
        common = sorted(reference.keys() & cases.keys())
        if row == compared or len(common) < 6:
            continue
        differences = [cases[key] - reference[key] for key in common]
        p = float(wilcoxon(differences).pvalue) if any(differences) else 1.0
        found.append((p, ", ".join(row), statistics.median(differences), len(common)))
    print(f"\nagainst {', '.join(compared)}, paired over cases (Wilcoxon, Holm)")
    largest = 0.0
    for rank, (p, label, difference, count) in enumerate(sorted(found)):
        largest = max(largest, min(1.0, p * (len(found) - rank)))
        print(f"{label:<44}median difference {difference:+.4f}   p = {largest:.3f}   {count} cases")


def _cases(out: Path, runs: list[dict[str, Any]], name: str, model: str) -> _Cases:
    """Dice by seed, site, case and organ."""
    found = {}
    for run in runs:
        for site, models in run["models"].items() if run["name"] == name else ():
            picked = models.get("chosen", {}).get("name", "") if model == "taken home" else model
            path = case_file(out / f"seed-{run['seed']}" / name / site, picked)
            if path.exists():
                with path.open(newline="") as stream:
                    for row in csv.DictReader(stream):
                        found[run["seed"], site, row["case"], row["organ"]] = float(row["dice"])
    return found
