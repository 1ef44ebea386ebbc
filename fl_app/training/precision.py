"""Mixed precision: what a device is fast at, scaled gradients for fp16, layers that are right and quick in it."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import torch
from torch import nn

from fl_app.errors import ConfigError

Name = Literal["bf16", "fp16", "fp32"]
_SLAB_VALUES = 2**18
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


class GuardedConv3d(nn.Conv3d):
    """A convolution that computes maps smaller than its kernel in fp32.

    On CPUs, torch 2.13's bf16 weight gradient of a 3D convolution is garbage (uninitialised memory, no error)
    for maps of few voxels: kernel 3 with a first side of 2, kernel 5 with a first side of 2 to 4. Such maps cost
    next to nothing, so each map with a side below the kernel's is computed in fp32.
    """

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """As `torch.nn.Conv3d`."""
        tiny = any(side < kernel for side, kernel in zip(input.shape[2:], self.kernel_size, strict=True))
        if tiny and torch.is_autocast_enabled(input.device.type):
            with torch.autocast(input.device.type, enabled=False):
                return super().forward(input.float())
        return super().forward(input)


class _LearnedSlope(torch.autograd.Function):
    """PReLU with one slope w: max(x, 0) + w min(x, 0); its gradients are g or w g, and sum of g min(x, 0)."""

    @staticmethod
    def forward(context: Any, features: torch.Tensor, slope: torch.Tensor) -> torch.Tensor:
        context.save_for_backward(features)
        context.slope, context.type = float(slope), slope.dtype
        return nn.functional.leaky_relu(features, context.slope)

    @staticmethod
    def backward(context: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        (features,), (gradient,) = context.saved_tensors, gradients
        if gradient.stride() != features.stride():
            # of two layouts torch's operators read one value at a time
            gradient = torch.empty_like(features).copy_(gradient)
        down = torch.ops.aten.leaky_relu_backward(gradient, features, context.slope, False)
        steeper = torch.zeros(1, device=features.device)
        # slab by slab, since at this point a training step holds most
        slabs = max(1, features.numel() // _SLAB_VALUES)
        for upstream, part in zip(gradient.chunk(slabs, 2), features.chunk(slabs, 2), strict=True):
            steeper += (upstream * part.clamp(max=0)).sum(dtype=torch.float32)
        return down, steeper.to(context.type)


class QuickPReLU(nn.PReLU):
    """A PReLU with one slope that is several times faster on CPUs (``benchmarks/activation.py``)."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """As `torch.nn.PReLU`."""
        exported = torch.jit.is_tracing() or torch.compiler.is_compiling()  # type: ignore[attr-defined]
        if input.device.type == "cpu" and self.num_parameters == 1 and not exported:
            result: torch.Tensor = _LearnedSlope.apply(input, self.weight)
            return result
        return super().forward(input)


_ADAPTED: dict[type[nn.Module], type[nn.Module]] = {nn.Conv3d: GuardedConv3d, nn.PReLU: QuickPReLU}


def adapt_layers(network: nn.Module) -> nn.Module:
    """Turn a network's layers into `GuardedConv3d` and `QuickPReLU`, in place; names and weights stay."""
    for module in network.modules():
        module.__class__ = _ADAPTED.get(type(module), type(module))
    return network
