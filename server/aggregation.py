"""Weighted mean of the sites' updates, in constant memory, the same to the last bit in any order of arrival."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from fl_app.errors import FederationError

# Each product weight x difference is rounded to a multiple of 2^-32 and summed as an integer: integer addition
# is associative, floating-point addition is not. The rounding is 2e-10, below float32's own at 1e-3.
_SCALE = 2.0**32
_TYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)  # what torch can test for NaN
_LARGEST = 2.0**56  # of one rounded product: 127 such updates fit, and those of ordinary training 1000 times over


class WeightedMean:
    """Sums updates as they arrive: memory is one model, however many sites there are.

    Args:
        like: the current model; says which values an update must hold, and their shapes.
    """

    def __init__(self, like: Mapping[str, torch.Tensor]) -> None:
        self._like = like
        self._sums = {name: torch.zeros(value.shape, dtype=torch.int64) for name, value in like.items()}
        self.total_weight = 0

    def refusal(self, update: Mapping[str, torch.Tensor], weight: int) -> str | None:
        """Why an update cannot be added, or none. Nothing of a refused update is added."""
        if weight <= 0:
            return f"its weight is {weight} - it must have trained on something"
        missing, extra = sorted(self._like.keys() - update.keys()), sorted(update.keys() - self._like.keys())
        if missing or extra:
            return f"it holds other values than the model: {len(missing)} missing, {len(extra)} unknown"
        for name, value in update.items():
            if not isinstance(value, torch.Tensor) or value.dtype not in _TYPES or value.layout != torch.strided:
                return f"{name} is not a tensor of floating-point numbers"
            if value.shape != self._like[name].shape:
                return f"{name} has shape {tuple(value.shape)}, not {tuple(self._like[name].shape)}"
            if not bool(torch.isfinite(value).all()):
                return f"{name} holds NaN or infinity"
            if value.numel() and float(value.abs().max()) * weight * _SCALE > _LARGEST:
                return f"{name} has changed by {float(value.abs().max()):.3g}, more than any training does"
        return None

    def add(self, update: Mapping[str, torch.Tensor], weight: int) -> None:
        """Add a whole update with a positive weight.

        Raises:
            FederationError: `refusal` has a reason; nothing was added.
        """
        reason = self.refusal(update, weight)
        if reason:
            raise FederationError(reason)
        for name, value in update.items():
            self._sums[name] += (value.double() * (weight * _SCALE)).round_().to(torch.int64)
        self.total_weight += weight

    def apply(self) -> dict[str, torch.Tensor]:
        """The model plus the mean update, float32.

        Raises:
            FederationError: nothing was added.
        """
        if not self.total_weight:
            raise FederationError("no site's update could be used")
        scale = self.total_weight * _SCALE
        return {
            name: (value.double() + self._sums[name].double() / scale).to(value.dtype)
            for name, value in self._like.items()
        }
