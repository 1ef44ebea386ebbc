"""Measure what training takes at a site, and fit the memory model to it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import nn

from fl_app.config import Job
from fl_app.config.space import SearchSpace
from fl_app.networks.space.memory import MemoryModel
from fl_app.networks.space.sampling import NetworkSampler
from fl_app.networks.space.supernet import DiscreteNetwork
from fl_app.training.objectives import build_loss, build_optimizer
from fl_app.training.precision import MixedPrecision, choose_precision, guard_convolutions
from fl_app.training.randomness import stream_seed


def memory_model(job: Job, space: SearchSpace, device: torch.device) -> MemoryModel:
    """What training takes by calculation alone, for a job on a kind of device."""
    return MemoryModel(
        space,
        organs=len(job.data.labels),
        patch=job.data.patch_voxels,
        batch=job.training.batch_size,
        value_bytes=4 if choose_precision(job.training.precision, device) == "fp32" else 2,
        weight_copies=4 if job.training.optimizer.startswith("adam") else 3,
    )


def calibrate(
    job: Job, space: SearchSpace, device: torch.device, budget: float | None = None, probes: int = 4
) -> MemoryModel:
    """The memory model fitted to a few networks that are trained for a step here.

    Scale and offset are the least-squares line through calculated and measured bytes, then raised until no probe
    took more than the model says.

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
        scale, offset = np.polyfit(wanted, found, 1)
    missing = float((found - (scale * wanted + offset)).max())
    return replace(calculated, scale=float(scale), offset=float(offset) + max(0.0, missing))


def training_memory(network: nn.Module, job: Job, device: torch.device) -> int:
    """Bytes that training a network takes on a device: two steps of the job's patches, loss and optimiser.

    On a GPU, the peak of allocated memory. On a CPU, where other work hides the peak: what autograd keeps for the
    backward pass, each memory block once, and weights, gradients and optimiser states.

    Args:
        network: maps (batch, 1, x, y, z) to logits; it is moved to the device, and trained.
        job: the job.
        device: where to train.
    """
    before = torch.cuda.memory_allocated(device) if device.type == "cuda" else 0
    network = guard_convolutions(network).to(device).train()
    optimizer = build_optimizer(job.training, network)
    precision = MixedPrecision(choose_precision(job.training.precision, device), device)
    loss = build_loss(job.training.loss)
    shape = (job.training.batch_size, 1, *job.data.patch_voxels)
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(shape, generator=generator).to(device)
    labels = torch.randint(0, 1 + len(job.data.labels), shape, dtype=torch.uint8, generator=generator).to(device)
    weights = {_block(value)[0] for value in network.parameters()}
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    kept = 0
    for _ in range(2):
        blocks: dict[int, int] = {}

        def note(value: torch.Tensor, blocks: dict[int, int] = blocks) -> torch.Tensor:
            blocks.update([_block(value)])
            return value

        with torch.autograd.graph.saved_tensors_hooks(note, lambda value: value):
            with precision.autocast():
                logits = network(images)
            objective = loss(logits.float(), labels)
        kept = sum(size for block, size in blocks.items() if block not in weights)
        precision.step(objective, network, optimizer, job.training.gradient_clip)
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device)) - before
    held = [*network.parameters(), *(value.grad for value in network.parameters() if value.grad is not None)]
    held += [v for state in optimizer.state.values() for v in state.values() if isinstance(v, torch.Tensor)]
    return kept + sum(value.numel() * value.element_size() for value in held)


def _block(value: torch.Tensor) -> tuple[int, int]:
    """The memory block behind a tensor: its address and its bytes."""
    storage = value.untyped_storage()
    return storage.data_ptr(), storage.nbytes()
