"""What a site with little memory does to train the same network: memory and time of a step, against the plain step.

The quick job's U-Net, SegResNet and DynUNet on its patch, one thread, the ways that `fl_app.training.fitting` tries one
after the other. Memory is the most bytes of all tensors alive at one time; time is processor time, the ways in turns.

    .venv/bin/python -m benchmarks.saving_memory [REPETITIONS] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path

import torch

from benchmarks.steps import CPU, QUICK, steps_of
from benchmarks.timing import in_turns, machine
from fl_app.config import Job
from fl_app.config_file import load_job
from fl_app.networks.space.decoding import mebibytes
from fl_app.training.fitting import Fit, training_memory, ways_to_save
from fl_app.training.trainer import ready_network

NETWORKS: dict[str, dict[str, object]] = {
    "unet": {"channels": (16, 32, 64, 128)},
    "segresnet": {"channels": (8, 16)},
    "dynunet": {"size": "small"},
}


def main() -> None:
    """Print a table for each network."""
    parser = argparse.ArgumentParser(description="Training in less memory.")
    parser.add_argument("repetitions", type=int, nargs="?", default=5)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for name, settings in NETWORKS.items():
        job = Job.model_validate({**load_job(QUICK).model_dump(), "network": {"name": name, **settings}})
        ways = ways_to_save(job)
        fits = [Fit(way, ready_network(way, CPU), 0, True) for way in ways]
        memory = [training_memory(fit.network, fit.job, CPU) for fit in fits]
        labels = [fit.saving.words or "plain" for fit in fits]
        seconds = in_turns(
            {label: steps_of(way).step for label, way in zip(labels, ways, strict=True)}, arguments.repetitions
        )
        for label, taken in zip(labels, memory, strict=True):
            times = [statistics.median(seconds[each]) for each in (label, labels[0])]
            row = {"network": name, "way": label, "memory": taken / memory[0], "time": times[0] / times[1]}
            rows.append(row)
            print(
                f"{name:10} {label:95} {mebibytes(taken):>10}  {row['memory']:.2f} x memory  {row['time']:.2f} x time",
                flush=True,
            )
    if arguments.json:
        arguments.json.write_text(json.dumps({"rows": rows, "machine": machine()}, indent=1) + "\n")


if __name__ == "__main__":
    main()
