"""The quick job, and training steps of a job on random patches, as a site takes them on a CPU."""

from __future__ import annotations

from pathlib import Path

import torch

from fl_app.config import Job
from fl_app.training.precision import choose_precision
from fl_app.training.step import RandomSteps
from fl_app.training.trainer import ready_network

CPU = torch.device("cpu")
QUICK = Path(__file__).parents[1] / "fl_app" / "jobs" / "quick.yaml"


def steps_of(job: Job, architecture: str = "") -> RandomSteps:
    """Training steps, one of which is done.

    Args:
        job: the job.
        architecture: what the job's search has found, as JSON; empty: the job's own network.
    """
    precision = choose_precision(job.training.precision, CPU)
    network = ready_network(job, CPU, architecture)
    steps = RandomSteps(network, job.training_patch, job.training.batch_size, CPU, precision, job.training)
    steps.step()
    return steps
