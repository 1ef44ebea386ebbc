"""NovoGrad, for weights that are updated as soon as their gradients are known."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from monai.optimizers.novograd import Novograd

from fl_app.training.slabs import slabs

_SLAB_VALUES = 2**16  # of a weight, that are computed at a time


class SlabbedNovograd(Novograd):
    """MONAI's, which can update weights slab by slab: of the size of a weight there is then its gradient, no more.

    NovoGrad (Ginsburg et al., arXiv:1905.11286, algorithm 1): with g the gradient of a weight w, v the running mean of
    |g|^2, and m of g / sqrt(v), w is moved by -rate m.
    """

    _in_slabs = False

    @contextmanager
    def slab_by_slab(self) -> Iterator[None]:
        """The context in which it does so; momentum is kept in bf16, and gradients are used up."""
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
            momentum = torch.zeros_like(weight, dtype=torch.bfloat16)
            state |= {"step": 0, "exp_avg": momentum, "exp_avg_sq": torch.zeros([], device=weight.device)}
        state["step"] += 1
        state["exp_avg"] = state["exp_avg"].bfloat16()  # which a restored one is not
        mean_share, square_share = group["betas"]
        square, squares = torch.linalg.vector_norm(weight.grad).square(), state["exp_avg_sq"]
        squares.copy_(torch.where(squares == 0, square, squares * square_share + square * (1 - square_share)))
        length = squares.sqrt() + group["eps"]
        for rows in slabs(weight, 0, _SLAB_VALUES):
            values, gradient, momentum = (each[rows] for each in (weight, weight.grad, state["exp_avg"]))
            gradient.div_(length).add_(values, alpha=group["weight_decay"])
            if group["grad_averaging"]:
                gradient.mul_(1 - mean_share)
            mean = momentum.float().mul_(mean_share).add_(gradient)
            values.sub_(mean, alpha=group["lr"])
            momentum.copy_(mean)
