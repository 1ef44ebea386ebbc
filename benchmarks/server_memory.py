"""The server's memory and its time for one update, with 2, 8, 32 and 100 sites, against FLARE's in-time aggregation.

Ours is the whole server of a job without FLARE: workflow, guard, mean, record, audit trail and checkpoints, with the
default network (4.8 million values) and two rounds. FLARE's `WeightedAggregationHelper` only adds and divides. Updates
come one after the other as they do from a wire: each is made, taken and forgotten. Every row is a process of its own;
its memory is the resident peak above what it had before the first round. Time is the processor's, of one thread.

    .venv/bin/python -m benchmarks.server_memory [SITES ...] [--json FILE]
    .venv/bin/python -m benchmarks.server_memory --rehearse 100     # as many sites that really train, in this process
"""

from __future__ import annotations

import argparse
import json
import logging
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import torch
from nvflare.app_common.aggregators.weighted_aggregation_helper import WeightedAggregationHelper

from fl_app.config import Job
from fl_app.data.phantom import make_cohort
from fl_app.messages import PREPARE, TEST, TRAIN, Saving, SiteReady, Spread, TestReport, TrainReport, Validation
from fl_app.messages import ValidationReport as Validated
from fl_app.networks.registry import build_network
from fl_app.rehearsal import rehearse
from fl_app.result import software_versions
from fl_app.site import SiteSettings
from server.channel import Answer, Payload, Values
from server.exchange import Exchange
from server.freed_memory import give_back_freed_memory
from server.workflow import Workflow

SITES, ROUNDS = (2, 8, 32, 100), 2
VALIDATION = Validation(cases=2, metrics={"val_dice": 0.5}, seconds=0.0)
SPREAD = {"spleen": Spread(mean=0.5, std=0.1, cases=2)}


def resident() -> int:
    """Bytes of memory that this process has now."""
    return int(psutil.Process().memory_info().rss)


def update(like: Mapping[str, torch.Tensor], chance: torch.Generator) -> Values:
    """What a site might send back."""
    return {name: 1e-3 * torch.randn(value.shape, generator=chance) for name, value in like.items()}


class Visitors:
    """A channel to sites that answer at once, each after the other."""

    def __init__(self) -> None:
        self.seconds: list[float] = []  # of each update, at the server
        self.before = 0
        self._chance = torch.Generator().manual_seed(0)

    def ask(self, task: str, payloads: Mapping[str, Payload], exchange: Exchange, answer: Answer) -> None:
        """See `server.channel.Channel`."""
        if task == TRAIN and not self.before:
            self.before = resident()
        for site, payload in payloads.items():
            values = update(payload.values, self._chance) if task == TRAIN else {}
            report = self._report(task, payload.facts)
            started = time.process_time()
            exchange.receive(site, partial(answer, site, values, report))
            if task == TRAIN:
                self.seconds.append(time.process_time() - started)
        exchange.close()

    def _report(self, task: str, facts: Mapping[str, Any]) -> dict[str, Any]:
        if task == PREPARE:
            return SiteReady(
                training_cases=4,
                validation_cases=2,
                test_cases=2,
                warnings=0,
                device="cpu",
                precision="fp32",
                versions=software_versions(),
                restored=None,
                saving=Saving(),
                search=None,
                seconds=0.0,
            ).model_dump()
        if task == TRAIN:
            return TrainReport(
                round=facts["round"],
                loss=0.5,
                steps=1,
                training_cases=4,
                training_seconds=0.0,
                memory_bytes=0,
                received=VALIDATION,
                touched=None,
            ).model_dump()
        if task == TEST:
            return TestReport(dice=SPREAD, surface_dice=SPREAD, seconds=0.0).model_dump()
        return Validated(received=VALIDATION).model_dump()


def ours(sites: int, folder: Path) -> tuple[int, list[float]]:
    """Bytes above the start, and seconds of each update."""
    give_back_freed_memory()
    channel = Visitors()
    federation = {"rounds": ROUNDS, "transfer_bits": 32}  # whole differences, as FLARE's helper takes them
    job = Job.model_validate({"training": {"steps_per_round": 1}, "federation": federation})
    Workflow(job, folder, channel).run([f"site-{number}" for number in range(sites)])
    return channel.before, channel.seconds


def flare(sites: int, folder: Path) -> tuple[int, list[float]]:
    """The same of FLARE's helper, which is given the model that the differences belong to."""
    model = dict(build_network(Job()).state_dict())
    chance, seconds, before = torch.Generator().manual_seed(0), [], resident()
    for number in range(ROUNDS):
        helper = WeightedAggregationHelper()
        for site in range(sites):
            values = update(model, chance)
            started = time.process_time()
            helper.add(values, 4, f"site-{site}", number)
            seconds.append(time.process_time() - started)
        mean = helper.get_result()
        model = {name: value + mean[name] for name, value in model.items()}
    return before, seconds


def measure(side: str, sites: int) -> None:
    """One row, as JSON on stdout."""
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory() as folder:
        before, seconds = {"ours": ours, "FLARE": flare}[side](sites, Path(folder))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    row = {"side": side, "sites": sites, "mb": (peak - before) / 1e6, "peak_mb": peak / 1e6}
    print(json.dumps(row | {"ms": 1000 * statistics.median(seconds)}))


def rehearsal(count: int) -> None:
    """A federation of many sites that train a small network, in this process; they share the data of five."""
    torch.set_num_threads(1)
    started = time.monotonic()
    job = Job.model_validate(
        {
            "data": {"spacing_mm": [8, 8, 10], "patch_voxels": [16, 16, 8]},
            "network": {"channels": [4, 8]},
            "training": {"steps_per_round": 2, "batch_size": 1},
            "federation": {"rounds": 3},
        }
    )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        made = make_cohort(folder / "cohort", sites=5, cases=[3] * 5, detail=0.5)
        settings = [SiteSettings(data=path, threads=1, cache=folder / "cache") for path in made]
        sites = {f"site-{number + 1}": settings[number % len(settings)] for number in range(count)}
        result = rehearse(job, sites, folder / "out")
    assert result.final is not None
    rounds = ", ".join(f"{done.seconds:.1f} s with {len(done.sites)} sites" for done in result.rounds)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    tested = len(result.final.sites)
    print(
        f"{count} sites: {result.status} in {time.monotonic() - started:.0f} s, {tested} tested, at most {peak:.1f} GB"
    )
    print(f"rounds: {rounds}")


def main() -> None:
    """Measure all rows in processes of their own, and print a table."""
    parser = argparse.ArgumentParser(description="The server's memory by number of sites.")
    parser.add_argument("sites", type=int, nargs="*", default=SITES)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--rehearse", type=int)
    parser.add_argument("--measure", choices=("ours", "FLARE"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.rehearse:
        rehearsal(arguments.rehearse)
        return
    if arguments.measure:
        measure(arguments.measure, arguments.sites[0])
        return
    rows = []
    for side in ("ours", "FLARE"):
        first = 0.0
        for sites in arguments.sites:
            command = [sys.executable, "-m", "benchmarks.server_memory", str(sites), "--measure", side]
            told = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            rows.append(json.loads(told.splitlines()[-1]))
            row = rows[-1]
            first = first or row["mb"]
            print(
                f"{side:<6}{sites:>4} sites: {row['mb']:7.0f} MB above the start ({row['mb'] / first:.2f} times that "
                f"of {arguments.sites[0]}; in all {row['peak_mb']:.0f} MB), {row['ms']:6.1f} ms an update",
                flush=True,
            )
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
