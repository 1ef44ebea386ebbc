"""One hostile site of five: what is left of the model, by aggregation rule.

Five sites of the phantom cohort train a small network together, in this process and without FLARE, with the trainer,
the guard and the aggregation rules of a real federation. The first site is the attacker. Printed is the mean test Dice
of the last model at the other four; with several seeds, their median.

    .venv/bin/python -m benchmarks.attackers [SEEDS]
"""

from __future__ import annotations

import math
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import torch

from fl_app.config import Job
from fl_app.data.phantom import make_cohort
from fl_app.data.preparation import PreparedCase, prepare_cases
from fl_app.data.site_check import split_site
from fl_app.errors import FederationError, TrainingError
from fl_app.training.trainer import Trainer
from server.aggregation import build_aggregate
from server.guard import Claim, Guard

SITES, CASES, ROUNDS, STEPS = 5, 6, 10, 10
Values = dict[str, torch.Tensor]
Attack = Callable[[Values, torch.Generator], Values]


def job(seed: int) -> Job:
    """A network and a grid that one core trains in seconds."""
    return Job.model_validate(
        {
            "seed": seed,
            "data": {"spacing_mm": [6, 6, 8], "patch_voxels": [32, 32, 16]},
            "network": {"channels": [8, 16, 32], "residual_units": 1},
            "training": {"steps_per_round": STEPS, "batch_size": 2, "learning_rate": 0.04, "precision": "fp32"},
            "federation": {"rounds": ROUNDS},
        }
    )


def noise(update: Values, chance: torch.Generator) -> Values:
    """Random numbers, five times as long as the update."""
    return {
        name: torch.randn(value.shape, generator=chance) * 5 * value.norm() / max(value.numel(), 1) ** 0.5
        for name, value in update.items()
    }


# what the attacker makes of its update; label flipping happens in its data
ATTACKS: dict[str, Attack] = {
    "none": lambda update, chance: update,
    "labels flipped": lambda update, chance: update,
    "sign flipped, times 4": lambda update, chance: {name: -4 * value for name, value in update.items()},
    "scaled by 100": lambda update, chance: {name: 100 * value for name, value in update.items()},
    "noise": noise,
}
RULES = ("mean", "mean + guard", "norm_clipping", "trimmed_mean", "median", "krum")


def run(seed: int, attack: str, rule: str, training: list[list[PreparedCase]], test: list[PreparedCase]) -> float:
    """The last model's mean test Dice; NaN if the job ended early, as training diverged at the sites."""
    described = job(seed)
    if attack == "labels flipped":
        training = [[replace(case, label=1 - case.label) for case in training[0]], *training[1:]]
    sites = [f"site-{number + 1}" for number in range(SITES)]
    trainers = {
        site: Trainer(described, cases, torch.device("cpu"), site) for site, cases in zip(sites, training, strict=True)
    }
    cases = {site: len(trainer.cases) for site, trainer in trainers.items()}
    guard = Guard(STEPS, cases) if rule == "mean + guard" else None
    chance = torch.Generator().manual_seed(seed)
    shared = trainers[sites[0]].shared_values()
    shapes = {name: value.shape for name, value in shared.items()}
    for number in range(1, ROUNDS + 1):
        aggregate = build_aggregate(rule.removesuffix(" + guard"), shared, sites, attackers=1)
        if guard:
            guard.begin(number, shared)
        for site, trainer in trainers.items():
            trainer.load(shared)
            try:
                trainer.train(number, STEPS, ROUNDS)
            except TrainingError:
                continue  # what a real site reports, too: its training diverged
            after = trainer.shared_values()
            update = {name: after[name] - shared[name] for name in shared}
            if site == sites[0]:
                update = ATTACKS[attack](update, chance)
            if guard and guard.admit(site, update, Claim(number, STEPS, cases[site]), shapes):
                continue
            try:
                aggregate.add(site, update, cases[site])
            except FederationError:
                continue
        try:
            shared = dict(aggregate.apply())
        except FederationError:
            return math.nan  # too few updates could be used
    return score(trainers[sites[1]], shared, test)


def score(trainer: Trainer, values: Mapping[str, torch.Tensor], test: list[PreparedCase]) -> float:
    """Mean Dice of a model on test cases."""
    trainer.load(values)
    return statistics.fmean(case.dice["spleen"] for case in trainer.score(test))


def main(seeds: int) -> None:
    """Make the cohort, run every rule against every attack, and print a table."""
    torch.set_num_threads(1)
    started = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        made = make_cohort(Path(folder) / "cohort", sites=SITES, cases=[CASES] * SITES, detail=0.5)
        settings = job(0).data
        parts = [split_site(site, settings, 0, None) for site in made]
        training = [prepare_cases(part["training"], settings, None) for part in parts]
        # nothing is chosen by validation here
        kept = [case for part in parts[1:] for case in part["validation"] + part["test"]]
        test = prepare_cases(kept, settings, None)
    print(f"{len(test)} test cases; training cases {[len(cases) for cases in training]}", file=sys.stderr)
    print("| attack |", " | ".join(RULES), "|")
    print("| --- |", " | ".join(["---"] * len(RULES)), "|")
    for attack in ATTACKS:
        row = []
        for rule in RULES:
            value = statistics.median(run(seed, attack, rule, training, test) for seed in range(seeds))
            row.append("job ended" if math.isnan(value) else f"{value:.3f}")
            spent = time.process_time() - started
            print(f"{attack}, {rule}: {row[-1]} ({spent:.0f} s of one core so far)", file=sys.stderr)
        print(f"| {attack} |", " | ".join(row), "|", flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 1)
