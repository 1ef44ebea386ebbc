"""The largest connected part of each organ, found slab by slab."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from fl_app.prediction.slabs import SlabFile

_TOUCHING = np.ones((3, 3, 3), dtype=bool)  # voxels that share a face, an edge or a corner


def keep_largest(labels: SlabFile, organs: int) -> None:
    """Turn all but the largest connected part of each organ into background, in place.

    Each slab's parts are numbered by `scipy.ndimage.label`. Neighbouring slabs share a plane, and two numbers of one
    voxel mean one part. Of parts of the same size the first stays.

    Args:
        labels: label map, organs numbered from 1.
        organs: how many.
    """
    for organ in range(1, organs + 1):
        parts = _Parts()
        last = np.zeros(labels.shape[1:], np.int64)
        for _, slab in _sharing_a_plane(labels):
            numbers = parts.number(slab == organ)
            parts.unite(last, numbers[0])
            last = numbers[-1]
        largest = parts.largest()
        offset = 0
        for start, slab in _sharing_a_plane(labels):
            numbers, count = _number(slab == organ, offset)
            offset += count
            slab[(numbers > 0) & ~largest[numbers]] = 0
            labels.write(start, slab[1:])


class _Parts:
    """Union-find over the parts of all slabs; part 0 is no part."""

    def __init__(self) -> None:
        self._parents = [0]
        self._voxels = [0]

    def number(self, mask: NDArray[np.bool_]) -> NDArray[np.int64]:
        """Number the parts of a slab, whose first plane was counted before."""
        numbers, count = _number(mask, len(self._parents) - 1)
        self._parents += range(len(self._parents), len(self._parents) + count)
        sizes = np.bincount(numbers[1:].ravel(), minlength=len(self._parents))
        self._voxels += sizes[len(self._voxels) :].tolist()
        return numbers

    def unite(self, first: NDArray[np.int64], second: NDArray[np.int64]) -> None:
        """Two numberings of the same plane: what shares a voxel is one part."""
        pairs = np.stack([first, second])[:, (first > 0) & (second > 0)]
        for one, other in np.unique(pairs, axis=1).T.tolist():
            roots = sorted((self._root(one), self._root(other)))
            self._parents[roots[1]] = roots[0]

    def largest(self) -> NDArray[np.bool_]:
        """For each number, whether it belongs to the largest part."""
        roots = np.array([self._root(number) for number in range(len(self._parents))])
        voxels = np.bincount(roots, weights=self._voxels)
        return np.asarray(roots == voxels.argmax())

    def _root(self, number: int) -> int:
        while self._parents[number] != number:
            self._parents[number] = self._parents[self._parents[number]]
            number = self._parents[number]
        return number


def _number(mask: NDArray[np.bool_], offset: int) -> tuple[NDArray[np.int64], int]:
    numbers, count = ndimage.label(mask, _TOUCHING)
    return np.where(mask, numbers + np.int64(offset), 0), count


def _sharing_a_plane(labels: SlabFile) -> Iterator[tuple[int, NDArray[Any]]]:
    """Each slab with the plane before it, as that was when it was read; before the first slab lies background."""
    before = np.zeros((1, *labels.shape[1:]), labels.dtype)
    for start, slab in labels.slabs():
        slab = np.concatenate([before, slab])
        before = slab[-1:].copy()
        yield start, slab
