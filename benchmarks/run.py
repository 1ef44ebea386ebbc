"""Runs the benchmarks of `benchmarks/suite.txt` and writes `benchmarks/RESULTS.md`.

    benchmarks/run.sh [--again] [--note TEXT] [NAME ...]

Each runs in a process of its own and has a time limit. What one printed is kept in ``results/benchmarks/``, so that a
run that was ended goes on where it was; another commit, or ``--again``, begins anew. One that fails is named, and the
others go on; the exit code is then 1. The results of those that are not run stay in the file: each says where and when
it was made.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from pathlib import Path

import psutil
import torch

from fl_app.result import software_versions

HERE = Path(__file__).parent
KEPT = HERE.parent / "results" / "benchmarks"
_NEED_GPU = ("gpu", "single_site")


@dataclass(frozen=True)
class Entry:
    """A line of the suite."""

    name: str
    minutes: int
    arguments: tuple[str, ...]


@dataclass(frozen=True)
class Outcome:
    """What came of a benchmark."""

    command: str
    commit: str
    finished: str
    seconds: float
    failure: str
    output: str
    place: str = ""


def read_suite() -> list[Entry]:
    """All benchmarks, in the order they are run."""
    lines = [line.split() for line in (HERE / "suite.txt").read_text().splitlines()]
    return [Entry(words[0], int(words[1]), tuple(words[2:])) for words in lines if words and words[0] != "#"]


def commit() -> str:
    """What is checked out."""
    told = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=HERE, capture_output=True, text=True, check=False
    )
    return told.stdout.strip() or "unknown"


def run(entry: Entry) -> Outcome:
    """Run one benchmark to its end or its limit; its progress is shown, its table kept."""
    command = [sys.executable, "-W", "ignore", "-m", f"benchmarks.{entry.name}", *entry.arguments]
    started, failure = time.monotonic(), ""
    with subprocess.Popen(
        command, cwd=HERE.parent, stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        try:
            output, _ = process.communicate(timeout=60 * entry.minutes)
            if process.returncode:
                failure = f"it ended with exit code {process.returncode}"
        except subprocess.TimeoutExpired:
            failure = f"it was not done within {entry.minutes} minutes"
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)  # and all processes that it has started
        if failure.startswith("it was"):
            output, _ = process.communicate()
    now = datetime.now(timezone.utc).isoformat(timespec="minutes")
    shown = " ".join([".venv/bin/python", *command[3:]])
    return Outcome(shown, commit(), now, round(time.monotonic() - started), failure, output)


def place(note: str) -> str:
    """This machine, the versions, and under which conditions."""
    processor = next(
        (line.split(":")[1].strip() for line in _lines("/proc/cpuinfo") if "model name" in line), "unknown"
    )
    gpus = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    cores = f"{len(os.sched_getaffinity(0))} of {os.cpu_count()} cores"
    memory = psutil.virtual_memory().total / 2**30
    versions = software_versions()
    shown = ", ".join(f"{name} {versions[name]}" for name in ("python", "monai", "torch", "nvflare"))
    told = f"{cores} of {processor}, {memory:.0f} GiB, GPU: {', '.join(gpus) or 'none'}; {shown}"
    return f"{told}; {note}" if note else told


def report(entries: list[Entry], outcomes: dict[str, Outcome], earlier: str = "") -> str:
    """The results as Markdown; what ``earlier`` results say of the other benchmarks stays."""
    text = [
        "# Results",
        "",
        "Written by `benchmarks/run.sh`; do not edit. What each benchmark compares with what is in",
        "[README.md](README.md) and at the top of each file. Only the ratios mean something on another machine.",
    ]
    # what a benchmark printed may hold lines like headings
    _, *parts = re.split(r"\n## (\w+)\n\n(?=`|Not run)", earlier)
    known = dict(zip(parts[::2], map(str.strip, parts[1::2]), strict=True))
    for entry in entries:
        text += ["", f"## {entry.name}", ""]
        outcome = outcomes.get(entry.name)
        if outcome is None:
            text.append(known.get(entry.name, "Not run."))
            continue
        text.append(f"`{outcome.command}`, commit {outcome.commit}, {outcome.finished}, {outcome.seconds:.0f} s  ")
        text.append(outcome.place)
        if outcome.failure:
            text += ["", f"**Failed: {outcome.failure}.**"]
        text += ["", "```", outcome.output.rstrip(), "```"]
    return "\n".join(text) + "\n"


def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines() if Path(path).exists() else []


def main() -> int:
    """Run what is wanted; the exit code."""
    parser = argparse.ArgumentParser(prog="benchmarks/run.sh", description="Runs the benchmarks, writes RESULTS.md.")
    parser.add_argument("names", nargs="*", metavar="NAME", help="of a benchmark in benchmarks/suite.txt; none: all")
    parser.add_argument("--again", action="store_true", help="run also what was done with this commit")
    parser.add_argument("--note", default="", help="for RESULTS.md: under which conditions, such as other load")
    arguments = parser.parse_args()
    entries = read_suite()
    unknown = sorted(set(arguments.names) - {entry.name for entry in entries})
    if unknown:
        parser.error(f"{', '.join(unknown)}: not in benchmarks/suite.txt")
    wanted = [entry for entry in entries if not arguments.names or entry.name in arguments.names]
    KEPT.mkdir(parents=True, exist_ok=True)
    failed = []
    for entry in wanted:
        if entry.name in _NEED_GPU and not torch.cuda.is_available():
            print(f"{entry.name}: left out, torch finds no CUDA GPU on this machine")
            continue
        kept = KEPT / f"{entry.name}.json"
        earlier = Outcome(**json.loads(kept.read_text())) if kept.exists() else None
        if not arguments.again and earlier and earlier.commit == commit() and not earlier.failure:
            print(f"{entry.name}: done before, {earlier.finished}", flush=True)
            continue
        print(f"{entry.name}: at most {entry.minutes} minutes", flush=True)
        outcome = replace(run(entry), place=place(arguments.note))
        kept.write_text(json.dumps(asdict(outcome), indent=2) + "\n")
        print(outcome.output, end="", flush=True)
        if outcome.failure:
            failed.append(entry.name)
            print(f"{entry.name}: FAILED: {outcome.failure}", flush=True)
        everything = {path.stem: Outcome(**json.loads(path.read_text())) for path in KEPT.glob("*.json")}
        results = HERE / "RESULTS.md"
        results.write_text(report(entries, everything, results.read_text() if results.exists() else ""))
    if failed:
        print(f"failed: {', '.join(failed)}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
