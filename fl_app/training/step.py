"""One step of the optimiser, as training takes it and as its memory and time are measured."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from fl_app.config import TrainingSettings
from fl_app.training.precision import MixedPrecision

Pairs = list[tuple[nn.Parameter, torch.Tensor]]  # each parameter, and the value that it is pulled to


def take_step(
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    precision: MixedPrecision,
    settings: TrainingSettings,
    batch_loss: Callable[[], torch.Tensor],
    strength: float = 0.0,
    reference: Pairs | None = None,
    early: bool = False,
) -> torch.Tensor:
    """Forward and backward passes of ``training.accumulate`` batches, and a step of the optimiser.

    Args:
        network: what the optimiser changes.
        optimizer: takes the step.
        precision: how to compute.
        settings: the job's.
        batch_loss: the loss of one more batch. No name may hold what it is made of: the backward pass frees it.
        strength: mu of mu / 2 * |w - w_0|^2, which is added to the loss (FedProx: Li et al., MLSys 2020, eq. 2).
        reference: the parameters w and their w_0; none: nothing is added.
        early: update weights one by one (`MixedPrecision.step`).

    Returns:
        The mean of the batches' losses, without what pulls.
    """
    count = settings.accumulate
    mean = torch.zeros((), device=precision.device)
    optimizer.zero_grad(set_to_none=True)
    for number in range(count):
        loss = batch_loss() / count
        mean += loss.detach()
        if number == 0 and reference:
            loss = loss + strength / 2 * torch.stack([((own - start) ** 2).sum() for own, start in reference]).sum()
        if number + 1 < count:
            precision.backward(loss)
    precision.step(loss, network, optimizer, settings.gradient_clip, early)
    return mean
