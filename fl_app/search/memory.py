"""Measure what training takes at a site, and fit the memory model to it."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import torch
from torch import nn

from fl_app.config import Job
from fl_app.config.space import SearchSpace
from fl_app.networks.space.memory import MemoryModel
from fl_app.networks.space.sampling import NetworkSampler
from fl_app.networks.space.supernet import DiscreteNetwork
from fl_app.training.fitting import training_memory
from fl_app.training.precision import choose_precision
from fl_app.training.randomness import stream_seed
from fl_app.training.recompute import recompute

# computing again with gradients kept, the peak is not always at one place: at most 7.1 % more, of 36 networks
_MARGIN_AGAIN = 1.08
_MARGIN = 1.005  # 30 random networks took at most 0.4 % more than the line says (benchmarks/memory_model.py)


def memory_model(job: Job, space: SearchSpace, device: torch.device) -> MemoryModel:
    """What training takes by calculation alone, for a job on a kind of device."""
    training = job.training
    precision, momenta = choose_precision(training.precision, device), 2 if training.optimizer.startswith("adam") else 1
    rounded = momenta / (4 if training.optimizer == "novograd" else 2)  # 8 bits of 32, or 16
    copies = 2 + momenta if _keeps_gradients(job, device) else 1 + rounded
    return MemoryModel(
        space,
        organs=len(job.data.labels),
        patch=job.training_patch,
        batch=training.batch_size,
        value_bytes=4 if precision == "fp32" else 2,
        # those that weights are pulled to, and the distances
        weight_copies=copies + 2 * job.pulls,
        recompute=training.recompute,
    )


def _keeps_gradients(job: Job, device: torch.device) -> bool:
    """Whether a step holds all gradients at once; in fp16 it does in any case."""
    return not job.training.early_update or choose_precision(job.training.precision, device) == "fp16"


def measured_memory(network: nn.Module, job: Job, device: torch.device) -> int:
    """Bytes that training a network of cells takes at its peak, as sites train it; it stays as it is."""
    if job.training.recompute:
        network = recompute(copy.deepcopy(network))
    return training_memory(network, job, device)


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
    found = np.array([measured_memory(DiscreteNetwork(space, each, organs), job, device) for each in networks])
    if np.ptp(wanted) == 0:  # one network fits, or all are alike
        scale, offset = 1.0, float((found - wanted).max())
    else:
        scale, offset = np.polyfit(wanted, found, 1, w=1 / found)
    margin = _MARGIN_AGAIN if calculated.recompute and _keeps_gradients(job, device) else _MARGIN
    raised = margin * max(1.0, float((found / (scale * wanted + offset)).max()))
    return replace(calculated, scale=raised * float(scale), offset=raised * float(offset))
