"""An array on disk, read and written slab by slab, so that its size costs no memory."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fl_app.data.grid import slab_ranges


class SlabFile:
    """A raw file that holds an array; its first axis is the one that grows.

    Plain reads and writes rather than a memory map, whose pages would count as the process's memory.

    Args:
        path: a new file; it reads as zeros until it is written.
        shape: of the array.
        dtype: of its values.
    """

    def __init__(self, path: Path, shape: Sequence[int], dtype: Any) -> None:
        self.path = path
        self.shape = tuple(shape)
        self.dtype = np.dtype(dtype)
        self._row_values = math.prod(self.shape[1:])
        with path.open("wb") as stream:
            stream.truncate(self.shape[0] * self._row_bytes)

    @property
    def _row_bytes(self) -> int:
        return self._row_values * self.dtype.itemsize

    def read(self, start: int, stop: int) -> NDArray[Any]:
        """Rows ``start`` to ``stop`` (excluded), as a copy."""
        values = np.fromfile(
            self.path, self.dtype, count=(stop - start) * self._row_values, offset=start * self._row_bytes
        )
        return values.reshape(stop - start, *self.shape[1:])

    def read_box(self, box: Sequence[slice]) -> NDArray[Any]:
        """A part of the array, as a copy, whatever its axes' lengths are."""
        # mapped for this one read only
        return np.array(np.memmap(self.path, self.dtype, "r", shape=self.shape)[tuple(box)])

    def write_box(self, box: Sequence[slice], values: NDArray[Any]) -> None:
        """Put values where a part of the array is."""
        mapped = np.memmap(self.path, self.dtype, "r+", shape=self.shape)
        mapped[tuple(box)] = values
        mapped.flush()

    def write(self, start: int, values: NDArray[Any]) -> None:
        """Put rows where ``start`` is the first."""
        with self.path.open("r+b") as stream:
            stream.seek(start * self._row_bytes)
            np.ascontiguousarray(values, self.dtype).tofile(stream)

    def slabs(self) -> Iterator[tuple[int, NDArray[Any]]]:
        """All rows in order, as (first row, rows)."""
        for start, stop in slab_ranges(self.shape):
            yield start, self.read(start, stop)
