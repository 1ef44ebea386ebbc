"""Federated architecture search against what it must beat, at sites with unequal memory.

    python -m benchmarks.architecture_search --seeds 0 1 2 --jobs 2 --out results/search

Four sites of the phantom cohort, with memory budgets of 100, 75, 50 and 25 % of what training the quick job's U-Net
takes. Every row takes the same number of optimiser steps at each site; for the searched networks the supernet's are
among them, and the generations that choose have none. Fine-tuning adds the same steps to all. The budgets bind the
searched rows and those "in budget" only: the others train networks that break some of them, which the table marks.

Without ``--only`` those rows are run that compare the search with the usual networks, which takes two
to three hours on two cores; there are others for larger networks and for what was tried besides.

Runs that are finished are kept in the folder and not run again, so the command can be ended and started anew. No
FLARE process is started: the sites take turns in one process, with the same workflow (`fl_app.rehearsal`).
"""

from __future__ import annotations

import argparse
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import torch

from benchmarks.search_rows import ROWS, Row, base_job, unet_memory
from benchmarks.search_tables import print_tables
from fl_app.data.phantom import make_cohort
from fl_app.simulation.sites import threads_of_each
from fl_app.site import SiteSettings

BUDGETS = (1.0, 0.75, 0.5, 0.25)
TABLE = [
    "local",
    "centralised",
    "unet",
    "segresnet half",
    "dynunet tiny",
    "unet in budget",
    "search width",
    "search random",
    "search consensus",
    "search nested",
]


def run_row(arguments: argparse.Namespace, seed: int, name: str) -> str:
    """Run one row with one seed, and write it to the folder; a line about it."""
    torch.set_num_threads(threads_of_each(arguments.jobs))
    folder = arguments.out / f"seed-{seed}"
    job = base_job(seed, arguments.rounds, arguments.steps, arguments.tuning)
    memory = unet_memory(job)
    data = cohort(arguments, seed)
    sites = {path.name: SiteSettings(data=path, cache=arguments.out / "cache") for path in data}
    budgets = {site: int(memory * share) for site, share in zip(sites, arguments.budgets, strict=True)}
    run = ROWS[name](Row(name, job, sites, budgets, folder / name, arguments.supernet_share))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(run.model_dump_json(indent=1))
    return f"seed {seed}, {name}: {run.seconds:.0f} s"


def cohort(arguments: argparse.Namespace, seed: int) -> list[Path]:
    """The sites' folders; they are made where they are missing."""
    return make_cohort(arguments.out / f"phantom-{seed}", sites=len(arguments.budgets), seed=seed)


def read_arguments(given: list[str] | None = None) -> argparse.Namespace:
    """What to run; none: as the command line has it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=Path("results/search"))
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--tuning", type=int, default=40)
    parser.add_argument("--budgets", type=float, nargs="+", default=BUDGETS, help="shares of the U-Net's memory")
    parser.add_argument("--supernet-share", type=float, default=0.2, help="of the steps, that the supernet takes")
    parser.add_argument(
        "--only", nargs="*", choices=list(ROWS), default=TABLE, help="rows to run; default: %(default)s"
    )
    parser.add_argument("--jobs", type=int, default=1, help="rows that are run at one time, which share the cores")
    parser.add_argument("--print", action="store_true", help="only print what there is")
    return parser.parse_args(given)


def main() -> None:
    """Run what is missing, then print the tables."""
    arguments = read_arguments()
    wanted = [(seed, name) for seed in arguments.seeds for name in arguments.only]
    missing = [(seed, name) for seed, name in wanted if not (arguments.out / f"seed-{seed}" / f"{name}.json").exists()]
    if missing and not arguments.print:
        for seed in {seed for seed, _ in missing}:
            cohort(arguments, seed)  # before several processes want it
        with ProcessPoolExecutor(arguments.jobs, get_context("spawn")) as pool:
            started = [pool.submit(run_row, arguments, seed, name) for seed, name in missing]
            for each in started:
                print(each.result(), flush=True)
    print_tables(arguments.out)


if __name__ == "__main__":
    main()
