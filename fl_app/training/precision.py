"""Mixed precision: what a device is fast at, and scaled gradients for fp16."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Literal

import torch
from torch import nn

from fl_app.errors import ConfigError
from fl_app.training.novograd import SlabbedNovograd

Name = Literal["bf16", "fp16", "fp32"]
_TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
_MOMENTA = ("exp_avg", "momentum_buffer")  # running means of gradients, in the states of torch's and MONAI's optimisers


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

    Attributes:
        kind: the type that layers compute in.
    """

    def __init__(self, name: Name, device: torch.device) -> None:
        self.name = name
        self.device = device
        self.kind = _TYPES.get(name, torch.float32)
        # fp16 loses gradients below 6e-8: they are scaled up before the backward pass
        self._scaler = torch.amp.GradScaler(device.type, enabled=name == "fp16")

    def autocast(self, keep_weights: bool = True) -> AbstractContextManager[Any]:
        """The context for forward passes.

        Args:
            keep_weights: keep the weights in the lower precision until the context ends, for a network that uses them
                more than once.
        """
        if self.name == "fp32":
            return nullcontext()
        return torch.autocast(self.device.type, dtype=self.kind, cache_enabled=keep_weights)

    def ready(self, images: torch.Tensor) -> torch.Tensor:
        """Images on the device, in the type that the network's first layer computes in."""
        return images.to(self.device, self.kind)

    def backward(self, loss: torch.Tensor) -> None:
        """Backward pass; gradients are added to those that there are."""
        self._scaler.scale(loss).backward()

    def step(
        self,
        loss: torch.Tensor,
        network: nn.Module,
        optimizer: torch.optim.Optimizer,
        clip: float,
        early: bool = False,
    ) -> None:
        """Backward pass, gradient clipping and one optimiser step.

        Args:
            loss: its gradients are added to those that there are.
            network: what the optimiser changes.
            optimizer: takes the step.
            clip: largest norm of the gradient; 0: no limit.
            early: update each weight as soon as its gradient is known, and keep no gradient; ``clip`` is then for each
                weight. Not in fp16, where only all gradients tell whether the step is taken.
        """
        if early and not self._scaler.is_enabled():
            with _updated_early(optimizer, clip):
                loss.backward()
            return
        self.backward(loss)
        if clip:
            self._scaler.unscale_(optimizer)
            torch.nn.utils.clip_grad_norm_(network.parameters(), clip)
        self._scaler.step(optimizer)
        self._scaler.update()


@contextmanager
def _updated_early(optimizer: torch.optim.Optimizer, clip: float) -> Iterator[None]:
    """Have a backward pass take the optimiser's step (LOMO: Lv et al., ACL 2024, section 3.1)."""
    [group] = optimizer.param_groups
    weights, slabbed = group["params"], isinstance(optimizer, SlabbedNovograd)

    def update(weight: torch.Tensor) -> None:
        if clip:
            torch.nn.utils.clip_grad_norm_([weight], clip)
        state = optimizer.state[weight]
        if not slabbed:
            state.update({name: state[name].float() for name in _MOMENTA if name in state})
        group["params"] = [weight]
        optimizer.step()
        group["params"] = weights
        weight.grad = None
        if not slabbed:
            state.update({name: state[name].bfloat16() for name in _MOMENTA if name in state})

    hooks = [each.register_post_accumulate_grad_hook(update) for each in weights if each.requires_grad]
    try:
        with optimizer.slab_by_slab() if isinstance(optimizer, SlabbedNovograd) else nullcontext():
            yield
    finally:
        for hook in hooks:
            hook.remove()
