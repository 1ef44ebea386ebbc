"""Losses and optimisers by name, and how the learning rate falls."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from monai.losses.dice import DiceFocalLoss, DiceLoss
from torch import nn

from fl_app.config import TrainingSettings
from fl_app.training.dice_ce import DiceCrossEntropy
from fl_app.training.novograd import ForeachNovograd, SlabbedNovograd


def build_loss(name: str, overwrite: bool = False) -> nn.Module:
    """Loss of logits (batch, 1 + organs, x, y, z), in any precision, against labels (batch, 1, x, y, z).

    Soft Dice (Milletari et al., 3DV 2016, eq. 4, squared denominators off) over the organs of the whole batch,
    alone or plus cross-entropy (Isensee et al., Nature Methods 2021) or focal loss (Lin et al., ICCV 2017).

    Args:
        name: dice_ce, dice or dice_focal.
        overwrite: whether dice_ce may write its gradient over the logits.
    """
    # batch=True: one Dice over the batch, so that a patch without the organ does not push towards all or nothing
    common: dict[str, Any] = {
        "to_onehot_y": True,
        "softmax": True,
        "include_background": False,
        "batch": True,
    }
    if name == "dice":
        return _InFullPrecision(DiceLoss(**common))
    if name == "dice_focal":
        return _InFullPrecision(DiceFocalLoss(**common))
    return DiceCrossEntropy(overwrite)


class _InFullPrecision(nn.Module):
    """A loss that is computed in fp32, whatever precision the logits come in."""

    def __init__(self, loss: nn.Module) -> None:
        super().__init__()
        self._loss = loss

    def forward(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """The loss of the logits in fp32."""
        value: torch.Tensor = self._loss(logits.float(), labels)
        return value


def build_optimizer(settings: TrainingSettings, network: nn.Module) -> torch.optim.Optimizer:
    """The optimiser that the job names, over all of the network's parameters."""
    parameters, rate, decay = network.parameters(), settings.learning_rate, settings.weight_decay
    if settings.optimizer == "novograd":
        kind = SlabbedNovograd if settings.early_update else ForeachNovograd
        return kind(parameters, lr=rate, weight_decay=decay)
    if settings.optimizer == "adam":
        return torch.optim.Adam(parameters, lr=rate, weight_decay=decay)
    if settings.optimizer == "adamw":
        return torch.optim.AdamW(parameters, lr=rate, weight_decay=decay)
    return torch.optim.SGD(parameters, lr=rate, weight_decay=decay, momentum=0.99, nesterov=True)


def learning_rate(settings: TrainingSettings, progress: float) -> float:
    """The learning rate when ``progress`` (0 to 1) of the job's steps are done.

    cosine: r/2 (1 + cos(pi p)) (Loshchilov and Hutter, ICLR 2017); polynomial: r (1 - p)^0.9 (nnU-Net).
    """
    if settings.schedule == "cosine":
        return settings.learning_rate * 0.5 * (1 + math.cos(math.pi * progress))
    if settings.schedule == "polynomial":
        return float(settings.learning_rate * (1 - progress) ** 0.9)
    return settings.learning_rate


def moved_state(state: Mapping[str, Any], device: torch.device) -> dict[str, Any]:
    """An optimiser's state of one parameter on a device; the number of steps stays where it is, as Adam wants it."""
    return {
        name: value.to(device) if isinstance(value, torch.Tensor) and name != "step" else value
        for name, value in state.items()
    }
