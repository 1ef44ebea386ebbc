"""Weighted mean of the sites' updates, in constant memory, the same to the last bit in any order of arrival."""

from __future__ import annotations

import torch

from fl_app.errors import FederationError
from server.aggregation.update import Values, Weight, largest, misfit, pieces, weight_of

# Each product weight x difference is rounded to a multiple of 2^-32 and summed as an integer: integer addition
# is associative, floating-point addition is not. The rounding is 2e-10, below float32's own at 1e-3.
_SCALE = 2.0**32
_LARGEST = 2.0**56  # of one rounded product: 127 such updates fit, and those of ordinary training 1000 times over


class WeightedMean:
    """Sums updates as they arrive: memory is one model, however many sites there are.

    A weight is one number for an update of the whole model. Where sites train parts of the model (architecture
    search), it is a number for each value that the update holds; each value's mean is then over the sites that
    trained it, and a value that no site trained stays as it is.

    Args:
        like: the current model; says which values an update must hold, and their shapes.
    """

    def __init__(self, like: Values) -> None:
        self._like = like
        self._sums = {name: torch.zeros(value.shape, dtype=torch.int64) for name, value in like.items()}
        self.weights = dict.fromkeys(like, 0)

    def refusal(self, update: Values, weight: Weight) -> str | None:
        """Why an update cannot be added, or none. Nothing of a refused update is added."""
        reason = misfit(update, weight, self._like)
        if reason:
            return reason
        for name, value in update.items():
            if largest(value) * weight_of(weight, name) * _SCALE > _LARGEST:
                return f"{name} has changed by {largest(value):.3g}, more than any training does"
        return None

    def add(self, update: Values, weight: Weight) -> None:
        """Add a whole update with a positive weight.

        Raises:
            FederationError: `refusal` has a reason; nothing was added.
        """
        reason = self.refusal(update, weight)
        if reason:
            raise FederationError(reason)
        for name, value in update.items():
            each = weight_of(weight, name)
            for part, total in zip(pieces(value), pieces(self._sums[name]), strict=True):
                total += part.to(torch.float64, copy=True).mul_(each * _SCALE).round_().to(torch.int64)
            self.weights[name] += each

    def apply(self) -> dict[str, torch.Tensor]:
        """The model plus the mean update, float32.

        Raises:
            FederationError: nothing was added.
        """
        if not any(self.weights.values()):
            raise FederationError("no site's update could be used")
        return {
            name: self._sums[name].double().div_(max(self.weights[name], 1) * _SCALE).add_(value).to(value.dtype)
            for name, value in self._like.items()
        }
