"""Wall time to a mean validation Dice of 0.85 on the phantom cohort, 3 sites: a whole federation from its start.

Ours is the quick job, as `fedspleen simulate` runs it, with an empty cache. The peer is FLARE's FedAvg recipe with
MONAI's spleen tutorial at the sites (`benchmarks/peers/monai_tutorial_client.py`), in fp32 and with AMP: the same
network, cases, split, spacing and patch size. Both run in FLARE's simulator on this machine, one after the other, with
as many threads a site. A model's Dice counts when all sites have validated it, as they write down at once: ours in
their logs (the server hears of it with their next update), the peer's in a file. A peer is ended at the limit, or after
12 times what ours took, if that is later: the ratio is then a lower bound.

    .venv/bin/python -m benchmarks.time_to_dice [--limit 1500] [--only fedspleen amp fp32] [--json FILE]
    taskset -c 1 .venv/bin/python -m benchmarks.time_to_dice ...   # beside other work: one core, and its processor time
"""

import argparse
import json
import os
import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from benchmarks.steps import QUICK
from benchmarks.timing import machine
from fl_app.config import Job
from fl_app.config_file import load_job
from fl_app.data.phantom import make_cohort
from fl_app.data.site_check import split_site
from fl_app.processes import raise_on_signals, running
from fl_app.simulation.sites import threads_of_each

ROOT = Path(__file__).parent.parent
SITES = 3
PATIENCE = 12  # times ours, at least, on a slow machine, too


@dataclass(frozen=True)
class Reached:
    """What a federation came to.

    Attributes:
        seconds: until the wanted Dice; none: it was not reached.
        processor_seconds: of all its processes by then, or by its end.
        best_dice: of all models that all sites have validated.
        watched: seconds until it was reached, the federation ended, or was ended.
    """

    seconds: float | None
    processor_seconds: float
    best_dice: float
    watched: float


def processor_seconds() -> float:
    """Of all processes below this one; other work on the machine changes it less than wall time."""
    used = 0.0
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            used += sum(process.cpu_times()[:4])  # its own, and of those below it that have ended
    return used


def follow(command: list[str], folder: Path, limit: float, dice: Callable[[], list[float]], wanted: float) -> Reached:
    """Run a federation until it has reached the wanted Dice, has ended, or the limit is over.

    Args:
        command: the federation.
        folder: where it runs; its output goes to ``log`` there.
        limit: seconds.
        dice: mean validation Dice of the models so far.
        wanted: the Dice to reach.
    """
    threads = str(threads_of_each(SITES))
    environment = {"OMP_NUM_THREADS": threads, "PYTHONPATH": str(ROOT)}
    # what ended before is counted, too
    started, before, used = time.monotonic(), processor_seconds(), 0.0
    os.chdir(folder)
    with running(command, folder / "log", environment) as process:
        while time.monotonic() - started < limit:
            ended = process.poll() is not None
            used = max(used, processor_seconds() - before)
            best = max(dice(), default=0.0)
            if best >= wanted:
                seconds = time.monotonic() - started
                return Reached(seconds, used, best, seconds)
            if ended:
                break
            time.sleep(0.5)
        watched = time.monotonic() - started
    return Reached(None, used, max(dice(), default=0.0), watched)


def mean_dice(scores: Iterable[tuple[int, float, int]]) -> list[float]:
    """Of each model that all sites have validated: the mean over all cases; from each site's (round, Dice, cases)."""
    rounds: dict[int, list[tuple[float, int]]] = {}
    for number, dice, cases in scores:
        rounds.setdefault(number, []).append((dice, cases))
    whole = [found for found in rounds.values() if len(found) == SITES]
    return [sum(dice * cases for dice, cases in found) / sum(cases for _, cases in found) for found in whole]


def ours(folder: Path, cohort: Path, limit: float, wanted: float) -> Reached:
    """The quick job."""
    told = re.compile(r"round (\d+): received model \{'val_dice': ([\d.]+).*\}, (\d+) cases")

    def dice() -> list[float]:
        logs = [*folder.glob("out/flare/run/site-*/log.txt"), *folder.glob("out/logs/site-*.log")]
        lines = [told.search(line) for log in logs for line in log.read_text().splitlines()]
        return mean_dice((int(line[1]), float(line[2]), int(line[3])) for line in lines if line)

    command = [sys.executable, "-m", "fl_app.cli", "simulate", "--config", str(QUICK)]
    return follow([*command, "--data", str(cohort), "--out", "out"], folder, limit, dice, wanted)


def peer(folder: Path, cohort: Path, limit: float, wanted: float, amp: bool) -> Reached:
    """The recipe and the tutorial; many more rounds than it will have time for."""
    scores = folder / "scores.jsonl"
    (folder / "plan.json").write_text(json.dumps(plan(load_job(QUICK), cohort) | {"amp": amp, "scores": str(scores)}))

    def dice() -> list[float]:
        lines = scores.read_text().splitlines() if scores.exists() else []
        told = map(json.loads, lines)
        return mean_dice((score["round"], score["dice"], score["cases"]) for score in told)

    script = ROOT / "benchmarks" / "peers" / "monai_tutorial.py"
    return follow([sys.executable, str(script), str(folder), "2000", "plan.json"], folder, limit, dice, wanted)


def plan(job: Job, cohort: Path) -> dict[str, object]:
    """What the peer is to do, taken from our job."""
    channels = job.network.channels
    assert channels is not None
    sites = {}
    for number in range(1, SITES + 1):
        parts = split_site(cohort / f"site-{number}", job.data, job.seed)
        sites[f"site-{number}"] = {
            part: [{"image": str(case.image), "label": str(case.label)} for case in parts[part]]
            for part in ("training", "validation")
        }
    network = {
        "spatial_dims": 3,
        "in_channels": 1,
        "out_channels": 2,
        "channels": list(channels),
        "strides": [2] * (len(channels) - 1),
        "num_res_units": job.network.residual_units,
        "norm": ["instance", {"affine": True}],
    }
    return {"network": network, "sites": sites, "spacing_mm": job.data.spacing_mm, "patch": job.data.patch_voxels}


def main(wanted: float, limit: float, only: list[str], report: Path | None) -> None:
    """Run what is asked for, one after the other."""
    found: dict[str, Reached] = {}
    with tempfile.TemporaryDirectory() as place:
        cohort = Path(place) / "cohort"
        make_cohort(cohort, sites=SITES)
        for name in only:
            ours_took = found["fedspleen"].seconds if "fedspleen" in found else None
            patience = max(limit, PATIENCE * (ours_took or 0))
            folder = Path(place) / name
            folder.mkdir()
            if name == "fedspleen":
                reached = ours(folder, cohort, patience, wanted)
            else:
                reached = peer(folder, cohort, patience, wanted, amp=name == "amp")
            ended = f"not reached by {reached.watched:.0f} s"
            told = f"Dice {wanted} after {reached.seconds:.0f} s" if reached.seconds else ended
            more = f"{reached.processor_seconds:.0f} s of processor time, best mean validation Dice"
            print(f"{name:10} {told} ({more} {reached.best_dice:.3f})", flush=True)
            found[name] = reached
            if reached.seconds is None:
                print((folder / "log").read_text()[-600:] if reached.best_dice == 0 else "", flush=True)
    base = found.get("fedspleen")
    for name, other in found.items():
        if base and base.seconds and other is not base:
            times = other.watched / base.seconds
            processor = other.processor_seconds / base.processor_seconds
            least = "" if other.seconds else "more than "
            print(f"{name}: {least}{times:.1f} times as long as fedspleen, {processor:.1f} times the processor time")
    if report:
        runs = {name: asdict(reached) for name, reached in found.items()}
        facts = {"dice": wanted, "limit": limit, "runs": runs, "machine": machine()}
        report.write_text(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--dice", type=float, default=0.85)
    parser.add_argument("--limit", type=float, default=1500, help="seconds for each, at least")
    parser.add_argument("--only", nargs="+", default=["fedspleen", "amp", "fp32"], choices=["fedspleen", "amp", "fp32"])
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    raise_on_signals()
    report = options.json.absolute() if options.json else None
    main(options.dice, options.limit, options.only, report)
