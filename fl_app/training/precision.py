"""Mixed precision: what a device is fast at, and scaled gradients for fp16."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import torch
from torch import nn

from fl_app.errors import ConfigError

Name = Literal["bf16", "fp16", "fp32"]
_TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def choose_precision(wanted: Literal["auto"] | Name, device: torch.device) -> Name:
    """The precision to compute in: bf16, fp16 or fp32.

    ``auto`` takes bf16 where the hardware has instructions for it, else fp16 on a GPU and fp32 on a CPU.

    Raises:
        ConfigError: fp16 is asked for on a CPU, whose training in it is neither fast nor stable.
    """
    if wanted == "fp16" and device.type == "cpu":
        raise ConfigError("training.precision: fp16 needs a GPU - use auto, bf16 or fp32 on a CPU")
    if wanted != "auto":
        return wanted
    if device.type == "cuda":
        return "bf16" if torch.cuda.get_device_capability(device) >= (8, 0) else "fp16"
    capabilities = torch.cpu.get_capabilities()
    return "bf16" if capabilities.get("avx512_bf16") or capabilities.get("amx_bf16") else "fp32"


class MixedPrecision:
    """Runs forward passes in the chosen precision and steps an optimiser safely.

    Args:
        name: bf16, fp16 or fp32.
        device: where the network lives.
    """

    def __init__(self, name: Name, device: torch.device) -> None:
        self.name = name
        self.device = device
        # fp16 loses gradients below 6e-8: they are scaled up before the backward pass
        self._scaler = torch.amp.GradScaler(device.type, enabled=name == "fp16")

    def autocast(self) -> AbstractContextManager[Any]:
        """The context for forward passes."""
        if self.name == "fp32":
            return nullcontext()
        return torch.autocast(self.device.type, dtype=_TYPES[self.name])

    def step(self, loss: torch.Tensor, network: nn.Module, optimizer: torch.optim.Optimizer, clip: float) -> None:
        """Backward pass, gradient clipping at norm ``clip`` (0: none) and one optimiser step."""
        optimizer.zero_grad(set_to_none=True)
        self.backward(loss)
        self.update(network, optimizer, clip)

    def backward(self, loss: torch.Tensor) -> None:
        """Backward pass; gradients are added to those that there are."""
        self._scaler.scale(loss).backward()

    def update(self, network: nn.Module, optimizer: torch.optim.Optimizer, clip: float) -> None:
        """Gradient clipping at norm ``clip`` (0: none) and one optimiser step."""
        if clip:
            self._scaler.unscale_(optimizer)
            torch.nn.utils.clip_grad_norm_(network.parameters(), clip)
        self._scaler.step(optimizer)
        self._scaler.update()
