"""Time several ways of doing the same thing in turns, so that other load on the machine hurts all of them alike."""

import json
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import monai
import torch


def in_turns(
    ways: Mapping[str, Callable[[], object]], repeats: int, clock: Callable[[], float] = time.process_time
) -> dict[str, list[float]]:
    """Seconds of each way by name: one call of each in turn, as often as asked; what comes before is up to the caller.

    Args:
        ways: what to call.
        repeats: how often.
        clock: process_time: the processor time of all threads of this process; perf_counter: wall time.
    """
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(repeats):
        for name, call in ways.items():
            started = clock()
            call()
            taken[name].append(clock() - started)
    return taken


def show(
    times: Mapping[str, Sequence[float]], ours: str, facts: Mapping[str, object], report: Path | None = None
) -> None:
    """Print medians, ranges and ratios to one of them; write them as JSON if a file is named.

    Args:
        times: seconds by name.
        ours: the name that the others are divided by.
        facts: what else was found.
        report: the JSON file.
    """
    base = statistics.median(times[ours])
    rows: dict[str, Any] = {}
    for name, seconds in times.items():
        middle = statistics.median(seconds)
        rows[name] = {"median_s": middle, "least_s": min(seconds), "most_s": max(seconds), "ratio": middle / base}
        spread = f"{1000 * min(seconds):.1f} to {1000 * max(seconds):.1f}, {len(seconds)} repetitions"
        print(f"{name:28} {1000 * middle:9.1f} ms ({spread}), {middle / base:5.2f} x {ours}")
    for name, value in facts.items():
        print(f"{name}: {value:.3g}" if isinstance(value, float) else f"{name}: {value}")
    if report:
        report.write_text(json.dumps({"times": rows, **facts, "machine": machine()}, indent=1) + "\n")


def machine() -> dict[str, object]:
    """What the figures depend on."""
    return {
        "processor": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "monai": monai.__version__,
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }
