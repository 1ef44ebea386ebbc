"""The stage between preparing and bringing back: probabilities, tile by tile, each in a file of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import nn

from fl_app.config import Job
from fl_app.data.grid import Box
from fl_app.prediction.slabs import SlabFile
from fl_app.prediction.stages import Prepared, planes_first
from fl_app.training.precision import MixedPrecision
from fl_app.training.windows import Windows


@dataclass(frozen=True)
class Tile:
    """A part of the prepared grid with its probabilities.

    Attributes:
        box: which part.
        file: float32 on disk: planes along the prepared axis, then classes, then the other two axes.
    """

    box: Box
    file: SlabFile


class TiledProbabilities:
    """All classes' probabilities on the prepared grid. Nothing is held in memory.

    Args:
        tiles: that make up the grid.
        axis: along which the prepared planes lie.
        classes: how many.
    """

    def __init__(self, tiles: Sequence[Tile], axis: int, classes: int) -> None:
        self.classes = classes
        self._tiles = tiles
        self._axis = axis

    def read(self, box: Box) -> NDArray[np.float32]:
        """A part of the grid: (classes, x, y, z)."""
        planes, *others = (part.stop - part.start for part in planes_first(box, self._axis))
        # in memory as in the files: planes first
        found = np.moveaxis(np.empty((planes, self.classes, *others), np.float32), 0, self._axis + 1)
        for tile in self._tiles:
            both = [(max(a.start, b.start), min(a.stop, b.stop)) for a, b in zip(box, tile.box, strict=True)]
            if any(start >= stop for start, stop in both):
                continue
            there = [
                slice(start - own.start, stop - own.start) for (start, stop), own in zip(both, tile.box, strict=True)
            ]
            here = [slice(start - own.start, stop - own.start) for (start, stop), own in zip(both, box, strict=True)]
            first, *others = planes_first(there, self._axis)
            stored = tile.file.read_box([first, slice(None), *others])
            found[(slice(None), *here)] = np.moveaxis(stored, 0, self._axis + 1)
        return found


def infer_tile(
    network: nn.Module,
    prepared: Prepared,
    box: Box,
    passes: Sequence[tuple[int, ...]],
    job: Job,
    precision: MixedPrecision,
    path: Path,
    advance: Callable[[int], None] = lambda windows: None,
) -> Tile:
    """The mean over the passes, each with its axes mirrored, of all classes' probabilities in one tile.

    Args:
        network: in evaluation mode, on the device.
        prepared: the scan.
        box: the tile, on the prepared grid.
        passes: axes to mirror in each.
        job: the model's.
        precision: how to compute, and where.
        path: a new file.
        advance: told how many windows were done.
    """
    axis = prepared.axis
    planes, *others = (part.stop - part.start for part in planes_first(box, axis))
    mean = SlabFile(path, [planes, 1 + len(job.data.labels), *others], np.float32)
    windows = Windows(prepared.grid.shape, axis, job)
    for number, mirrored in enumerate(passes):
        for first, found in windows.predict(network, mirrored, prepared.read, precision, box, advance):
            start = first - box[axis].start
            values = np.moveaxis(found.cpu().numpy(), axis + 1, 0) / np.float32(len(passes))
            if number:
                values += mean.read(start, start + len(values))
            mean.write(start, values)
    return Tile(box, mean)
