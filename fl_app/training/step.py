"""One step of the optimiser, as training takes it and as its memory and time are measured."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import nn

from fl_app.config import TrainingSettings
from fl_app.training.adapting import adapt_layers
from fl_app.training.freezing import lower_frozen
from fl_app.training.lean import may_lose_logits
from fl_app.training.objectives import build_loss, build_optimizer
from fl_app.training.precision import MixedPrecision, Name

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


class RandomSteps:
    """Training steps as a site takes them, on random patches.

    Args:
        network: any module that maps (batch, 1, x, y, z) to logits (batch, classes, x, y, z); it trains.
        patch: voxels along each axis.
        batch_size: patches in a step.
        device: where to take the steps.
        precision: what they compute in.
        settings: names the loss and the optimiser; none: the defaults.
        pulled: whether the weights are pulled to others, as FedProx and Ditto do.

    Attributes:
        loss: of logits against labels.
        reference: the weights that are trained, and what they are pulled to.
    """

    def __init__(
        self,
        network: nn.Module,
        patch: Sequence[int],
        batch_size: int,
        device: torch.device,
        precision: Name,
        settings: TrainingSettings | None,
        pulled: bool = False,
    ) -> None:
        settings = settings or TrainingSettings()
        self.network = adapt_layers(network).to(device).train()
        self.optimizer = build_optimizer(settings, self.network)
        self._precision = MixedPrecision(precision, device)
        if settings.frozen_share:
            lower_frozen(self.network, self._precision.kind)
        self.images = self._precision.ready(torch.rand(batch_size, 1, *patch))
        self.loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] = build_loss(
            settings.loss, may_lose_logits(self.network)
        )
        self._settings = settings
        trained = [each for each in self.network.parameters() if each.requires_grad and pulled]
        self.reference: Pairs = [(each, each.detach().clone()) for each in trained]

    def step(self) -> None:
        """Forward and backward as often as a step takes batches, and a step of the optimiser."""
        take_step(
            self.network,
            self.optimizer,
            self._precision,
            self._settings,
            self._batch_loss,
            1.0,
            self.reference,
            self._settings.early_update,
        )

    def _batch_loss(self) -> torch.Tensor:
        labels = torch.randint(0, 2, self.images.shape, device=self.images.device, dtype=torch.uint8)
        return self.loss(self._logits(), labels)

    def _logits(self) -> torch.Tensor:
        with self._precision.autocast(keep_weights=not self._settings.recompute):
            logits: torch.Tensor = self.network(self.images)
        return logits
