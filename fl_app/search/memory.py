"""Measure what training takes at a site, and fit the memory model to it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from fl_app.config import Job
from fl_app.config.space import SearchSpace
from fl_app.networks.space.memory import MemoryModel
from fl_app.networks.space.sampling import NetworkSampler
from fl_app.networks.space.supernet import DiscreteNetwork
from fl_app.training.fitting import training_memory
from fl_app.training.precision import choose_precision
from fl_app.training.randomness import stream_seed

_MARGIN = 1.005  # 30 random networks took at most 0.4 % more than the line says (benchmarks/memory_model.py)


def memory_model(job: Job, space: SearchSpace, device: torch.device) -> MemoryModel:
    """What training takes by calculation alone, for a job on a kind of device."""
    return MemoryModel(
        space,
        organs=len(job.data.labels),
        patch=job.training_patch,
        batch=job.training.batch_size,
        value_bytes=4 if choose_precision(job.training.precision, device) == "fp32" else 2,
        weight_copies=4 if job.training.optimizer.startswith("adam") else 3,
    )


def calibrate(
    job: Job, space: SearchSpace, device: torch.device, budget: float | None = None, probes: int = 6
) -> MemoryModel:
    """The memory model fitted to a few networks that are trained for a step here.

    Scale and offset are the line through calculated and measured bytes with the least squares of relative errors,
    raised by a factor until no probe took more than the model says, and by a little for what was not tried.

    Args:
        job: the job.
        space: the search space.
        device: where the site trains.
        budget: bytes; no probe takes more by calculation. None: any.
        probes: how many networks; the smallest, the largest and random ones.

    Raises:
        BudgetError: no network fits the budget by calculation.
    """
    calculated = memory_model(job, space, device)
    sampler = NetworkSampler(calculated, budget)
    networks = sampler.sandwich(probes, np.random.default_rng(stream_seed(job.seed, "memory probes")))
    organs = len(job.data.labels)
    wanted = np.array([calculated.total(network) for network in networks])
    found = np.array([training_memory(DiscreteNetwork(space, each, organs), job, device) for each in networks])
    if np.ptp(wanted) == 0:  # one network fits, or all are alike
        scale, offset = 1.0, float((found - wanted).max())
    else:
        scale, offset = np.polyfit(wanted, found, 1, w=1 / found)
    raised = _MARGIN * max(1.0, float((found / (scale * wanted + offset)).max()))
    return replace(calculated, scale=raised * float(scale), offset=raised * float(offset))
