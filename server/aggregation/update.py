"""What makes an update usable at all: the right names, shapes and types, and only finite numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch

Values = Mapping[str, torch.Tensor]
Weight = int | Mapping[str, int]
_PIECE = 2**16  # values
_TYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)  # what torch can test for NaN


def fault(update: Values, expected: Mapping[str, Sequence[int]]) -> str | None:
    """Why an update does not fit, or none.

    Args:
        update: differences of the values, by name.
        expected: the shape of every value that it must hold; it may hold no other.
    """
    missing, extra = sorted(expected.keys() - update.keys()), sorted(update.keys() - expected.keys())
    if missing or extra:
        return f"it holds other values than the model: {len(missing)} missing, {len(extra)} unknown"
    for name, value in update.items():
        if not isinstance(value, torch.Tensor) or value.dtype not in _TYPES or value.layout != torch.strided:
            return f"{name} is not a tensor of floating-point numbers"
        if value.shape != torch.Size(expected[name]):
            return f"{name} has shape {tuple(value.shape)}, not {tuple(expected[name])}"
        if not largest(value) < float("inf"):
            return f"{name} holds NaN or infinity"
    return None


def misfit(update: Values, weight: Weight, like: Values) -> str | None:
    """Why an update cannot be added to a model with this weight, or none.

    Args:
        update: differences of the values, by name.
        weight: a number, for an update of all values; or a number for each value that the update holds.
        like: the model.
    """
    if isinstance(weight, int):
        if weight <= 0:
            return f"its weight is {weight} - it must have trained on something"
        return fault(update, {name: value.shape for name, value in like.items()})
    none = [name for name, each in weight.items() if each <= 0]
    if none:
        return f"the weight of {none[0]} is {weight[none[0]]} - it must have trained on something"
    return fault(update, {name: like[name].shape for name in weight.keys() & like.keys()})


def weight_of(weight: Weight, name: str) -> int:
    """The weight of one value."""
    return weight if isinstance(weight, int) else weight[name]


def largest(value: torch.Tensor) -> float:
    """The largest absolute value in a tensor; NaN if it holds NaN, 0 if it is empty."""
    if not value.numel():
        return 0.0
    low, high = torch.aminmax(value.detach())
    return max(-float(low), float(high))


def norm(update: Values) -> float:
    """The Euclidean norm of a whole update, in double precision, the same in any order of its names."""
    parts = (part for name in sorted(update) for part in pieces(update[name]))
    return math.hypot(*(float(torch.linalg.vector_norm(part, dtype=torch.float64)) for part in parts))


def pieces(value: torch.Tensor) -> Sequence[torch.Tensor]:
    """A tensor in flat pieces that fit a processor's cache; of a contiguous one, views."""
    return value.reshape(-1).split(_PIECE)
