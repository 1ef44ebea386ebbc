"""NovoGrad for GPUs, and for weights that are updated as soon as their gradients are known."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from monai.optimizers.novograd import Novograd
from torch import nn

from fl_app.training.slabs import slabs

_SLAB_VALUES = {"cpu": 2**16, "cuda": 2**20}  # of a weight, that are computed at a time
_MOST = 127  # of 8 bits with a sign
_SMALLEST = torch.finfo(torch.float32).tiny


class ForeachNovograd(Novograd):
    """MONAI's, which on a GPU moves all weights together and never waits for the GPU.

    NovoGrad (Ginsburg et al., arXiv:1905.11286, algorithm 1): with g the gradient of a weight w, v the running mean of
    |g|^2, and m of g / sqrt(v), w is moved by -rate m.

    MONAI's asks the GPU for each weight whether it is moved for the first time, and takes a dozen operations for each:
    two fifths of the default U-Net's training step at 96^3, batch 2, on an H200.

    Args:
        params: the weights.
        lr: learning rate.
        weight_decay: weight decay.
        foreach: move the weights together; none: those on a GPU.
    """

    def __init__(
        self, params: Iterable[nn.Parameter], lr: float, weight_decay: float = 0.0, foreach: bool | None = None
    ) -> None:
        super().__init__(params, lr=lr, weight_decay=weight_decay)
        self._foreach = foreach

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """As `Novograd.step`; weights are moved together only without a ``closure``."""
        first = self.param_groups[0]["params"][0]
        together = first.is_cuda if self._foreach is None else self._foreach
        if not together or closure is not None:
            return super().step(closure)
        for group in self.param_groups:
            self._move_together(group)

    def _move_together(self, group: dict[str, Any]) -> None:
        weights = [weight for weight in group["params"] if weight.grad is not None]
        if not weights:
            return
        for weight in weights:
            state = self.state[weight]
            if not state:
                mean, square = torch.zeros_like(weight), torch.zeros([], device=weight.device)
                state |= {"step": 0, "exp_avg": mean, "exp_avg_sq": square}
            state["step"] += 1
        gradients = [weight.grad for weight in weights]
        means, squares = ([self.state[weight][name] for weight in weights] for name in ("exp_avg", "exp_avg_sq"))
        mean_share, square_share = group["betas"]
        now = _mean_square(torch.stack(squares), torch.stack(torch._foreach_norm(gradients)).square(), square_share)
        torch._foreach_copy_(squares, list(now.unbind()))
        torch._foreach_div_(gradients, list(now.sqrt().add(group["eps"]).unbind()))
        if group["weight_decay"]:
            torch._foreach_add_(gradients, weights, alpha=group["weight_decay"])
        if group["grad_averaging"]:
            torch._foreach_mul_(gradients, 1 - mean_share)
        torch._foreach_mul_(means, mean_share)
        torch._foreach_add_(means, gradients)
        torch._foreach_add_(weights, means, alpha=-group["lr"])


class SlabbedNovograd(ForeachNovograd):
    """MONAI's, which can update weights slab by slab: of the size of a weight there is then its gradient, no more.

    In slabs the running mean m of `ForeachNovograd` is kept as whole numbers from -127 to 127, times a scale for each
    row of the weight (Dettmers et al., ICLR 2022, section 2; here with equal steps).
    """

    _in_slabs = False

    @contextmanager
    def slab_by_slab(self) -> Iterator[None]:
        """The context in which it does so; momentum is kept in 8 bits, and gradients are used up."""
        self._in_slabs = True
        try:
            yield
        finally:
            self._in_slabs = False

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """As `Novograd.step`; in slabs there must be no ``closure``."""
        if not self._in_slabs:
            return super().step(closure)
        assert closure is None
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is not None:
                    self._move(weight, group)

    def _move(self, weight: torch.Tensor, group: dict[str, Any]) -> None:
        assert not group["amsgrad"] and weight.grad is not None
        state = self.state[weight]
        if not state:
            codes, scales = torch.zeros_like(weight, dtype=torch.int8), weight.new_zeros(len(weight))
            state |= {"step": 0, "exp_avg": codes, "scale": scales, "exp_avg_sq": torch.zeros([], device=weight.device)}
        state["step"] += 1
        state["exp_avg"] = state["exp_avg"].to(torch.int8)  # which restored ones are not
        mean_share, square_share = group["betas"]
        square, squares = torch.linalg.vector_norm(weight.grad).square(), state["exp_avg_sq"]
        squares.copy_(_mean_square(squares, square, square_share))
        length = squares.sqrt() + group["eps"]
        for rows in slabs(weight, 0, _SLAB_VALUES[weight.device.type]):
            values, gradient, codes = (each[rows] for each in (weight, weight.grad, state["exp_avg"]))
            gradient.div_(length).add_(values, alpha=group["weight_decay"])
            if group["grad_averaging"]:
                gradient.mul_(1 - mean_share)
            scales = state["scale"][rows].view(-1, *[1] * (weight.dim() - 1))
            mean = gradient.add_(codes.float().mul_(scales), alpha=mean_share)
            values.sub_(mean, alpha=group["lr"])
            largest = torch.linalg.vector_norm(mean.reshape(len(mean), -1), float("inf"), 1)
            scales.copy_((largest / _MOST).view_as(scales))
            codes.copy_(mean.div_(scales.clamp(min=_SMALLEST)).round_())


def _mean_square(before: torch.Tensor, found: torch.Tensor, share: float) -> torch.Tensor:
    """The running mean of |g|^2, which begins with the first one; a GPU is not asked which one that is."""
    return torch.where(before == 0, found, before * share + found * (1 - share))
