"""What the way in which one site trains does to the federated model.

    python -m benchmarks.one_site --seeds 0 1 2 --out results/search

From the best federated model of the row "unet" of `benchmarks.architecture_search`, which is run where it is missing,
all four sites train one more round; three of them as ever, with the same patches and steps, the last one in one way
after the other, as it would with less memory. Printed is the Dice of the averaged model over each site's validation and
test cases: mean over the sites, and the difference to a last site that saves nothing. Whole trainings with other
patches drawn differ by more than most of these ways do; here all else is the same.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from benchmarks.architecture_search import cohort, read_arguments, run_row
from benchmarks.steps import CPU
from fl_app.config import Job
from fl_app.data.site_data import SiteData, load_site_data
from fl_app.model_file import load_model
from fl_app.training.fitting import with_training
from fl_app.training.reporting import validation_report
from fl_app.training.trainer import Trainer
from server.aggregation.weighted_mean import WeightedMean

Values = dict[str, torch.Tensor]
ROUND = 6  # of 10, which places the learning rate

WAYS: Mapping[str, dict[str, Any]] = {
    "as the others": {},
    "weights updated one by one": {"early_update": True},
    "90 % of the weights frozen": {"frozen_share": 0.9},
    "patches of 92 %": {"patch_share": 0.92, "foreground_share": 0.75},
    "patches of 92 %, 50 % frozen": {"patch_share": 0.92, "foreground_share": 0.75, "frozen_share": 0.5},
    "patches of 7/8": {"patch_share": 0.875, "foreground_share": 0.75},
    "patches of 7/8, 90 % frozen": {"patch_share": 0.875, "foreground_share": 0.75, "frozen_share": 0.9},
    "patches of 3/4": {"patch_share": 0.75, "foreground_share": 0.75},
    "patches of 3/4, 50 % frozen": {"patch_share": 0.75, "foreground_share": 0.75, "frozen_share": 0.5},
}


def trained(job: Job, data: SiteData, site: str, start: Values, **training: Any) -> Values:
    """By what a site changes a model in a round."""
    trainer = Trainer(with_training(job, **training), data.training, CPU, site)
    trainer.load(start)
    trainer.train(ROUND, job.training.steps_per_round, job.federation.rounds)
    return {name: value - start[name] for name, value in trainer.all_values().items()}


def averaged(start: Values, updates: Mapping[str, Values], cases: Mapping[str, int]) -> Values:
    """The model after the round, as the server has it: by the sites' numbers of cases."""
    mean = WeightedMean(start)
    for site, update in updates.items():
        mean.add(update, cases[site])
    return mean.apply()


def compare(seed: int, arguments: argparse.Namespace) -> dict[str, float]:
    """Mean Dice over the sites by the last site's way of training."""
    model = arguments.out / f"seed-{seed}" / "unet" / "result" / "model" / "best.safetensors"
    if not model.exists():
        run_row(arguments, seed, "unet")
    start, info = load_model(model)
    job = info.job
    sites = {
        path.name: load_site_data(path, job.data, job.seed, arguments.out / "cache") for path in cohort(arguments, seed)
    }
    cases = {site: len(data.training) for site, data in sites.items()}
    *others, last = sites
    updates = {site: trained(job, sites[site], site, start) for site in others}
    scorer = Trainer(job, [], CPU, "scores")

    def dice(values: Values) -> float:
        scorer.load(values)
        by_site = [
            validation_report(scorer.score([*data.validation, *data.test]), tuple(job.data.labels), 0.0)
            for data in sites.values()
        ]
        return statistics.mean(each.metrics["val_dice"] or 0.0 for each in by_site)

    found = {"without it": dice(averaged(start, updates, cases))}
    for name, way in WAYS.items():
        found[name] = dice(averaged(start, {**updates, last: trained(job, sites[last], last, start, **way)}, cases))
        print(f"seed {seed}, the last site trains: {name}: {found[name]:.4f}", flush=True)
    return found


def main() -> None:
    """Compare with each seed, and print the means."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--out", type=Path, default=Path("results/search"))
    arguments = parser.parse_args()
    run = read_arguments(["--out", str(arguments.out)])
    found = [compare(seed, run) for seed in arguments.seeds]
    whole = [each["as the others"] for each in found]
    print(f"{'the last site':<32}{'Dice':>8}{'difference':>12}   by seed")
    for name in found[0]:
        values = [each[name] for each in found]
        apart = [value - other for value, other in zip(values, whole, strict=True)]
        print(
            f"{name:<32}{statistics.mean(values):>8.4f}{statistics.mean(apart):>+12.4f}   "
            + " ".join(f"{each:+.4f}" for each in apart)
        )


if __name__ == "__main__":
    main()
