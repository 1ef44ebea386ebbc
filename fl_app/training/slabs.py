"""What is computed slab by slab, so that what is between is there for one slab at a time."""

from __future__ import annotations

from collections.abc import Iterator

import torch


def slabs(values: torch.Tensor, axis: int, most: int) -> Iterator[slice]:
    """Slabs along an axis, of about so many values and of one row at least."""
    width = values.shape[axis]
    thick = max(1, most * width // max(1, values.numel()))
    return (slice(start, start + thick) for start in range(0, width, thick))
