"""Smooth random fields, fixed in the patient and therefore the same for every matrix size."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.floating[Any]]

# every field lives on the same box of canonical patient space (mm, right, anterior, superior)
LOWEST_MM = (-260.0, -220.0, -200.0)
HIGHEST_MM = (260.0, 220.0, 260.0)
# standard deviation left of unit normal control points after cubic B-spline interpolation in three directions
SPLINE_DEVIATION = 0.479**1.5


class SmoothField:
    """A cubic B-spline field of mean 0 and standard deviation 1; its waves are about 3 x `spacing_mm` long."""

    def __init__(self, random: np.random.Generator, spacing_mm: float) -> None:
        self.spacing_mm = spacing_mm
        box = zip(LOWEST_MM, HIGHEST_MM, strict=True)
        counts = [int((high - low) / spacing_mm) + 4 for low, high in box]
        self.controls: FloatArray = random.standard_normal(counts, dtype=np.float32)
        self.controls /= np.float32(SPLINE_DEVIATION)

    def on(self, axes: Sequence[FloatArray]) -> FloatArray:
        """Returns the field on the grid of three coordinate axes (mm): shape (len(x), len(y), len(z))."""
        values: FloatArray = self.controls
        # z first: a block is short in z, so this keeps the next two steps small
        for axis in (2, 0, 1):
            values = self._along(axis, axes[axis], values)
        return values

    def _along(self, axis: int, positions: FloatArray, values: FloatArray) -> FloatArray:
        """Interpolates along one axis, as a plain sum of four terms: a matrix product may depend on its threads."""
        count = values.shape[axis]
        cell = (np.asarray(positions, np.float64) - LOWEST_MM[axis]) / self.spacing_mm
        cell = np.clip(cell, 0.0, count - 3 - 1e-6)
        first = cell.astype(np.int64)
        t = cell - first
        four = ((1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, -3 * t**3 + 3 * t**2 + 3 * t + 1, t**3)
        broadcast = [-1 if other == axis else 1 for other in range(3)]
        result: FloatArray = np.zeros([*values.shape[:axis], len(t), *values.shape[axis + 1 :]], np.float32)
        for step, weight in enumerate(four):
            term = np.take(values, first + step, axis=axis)
            term *= (weight / 6).astype(np.float32).reshape(broadcast)
            result += term
        return result
