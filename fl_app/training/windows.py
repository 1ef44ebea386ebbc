"""Windowed inference that keeps one row of windows in memory, whatever the volume's length.

The same windows and weights as MONAI's `sliding_window_inference`, whose sums span the whole volume. The network sees
an empty window (air, and what is darker than the HU window) once: all others of that kind have the same answer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import groupby

import torch
from monai.data.utils import compute_importance_map, dense_patch_slices
from torch import nn
from torch.nn import functional

from fl_app.config import Job
from fl_app.training.precision import MixedPrecision

ReadPlanes = Callable[[int, int], torch.Tensor]  # (1, x, y, z) of the planes start to stop along one axis
Triple = tuple[int, int, int]


class Windows:
    """All windows of one prepared image, row by row along an axis.

    Args:
        shape: of the prepared image, x y z.
        axis: along which it is read: 0, 1 or 2.
        job: patch size and overlap.
    """

    def __init__(self, shape: Triple, axis: int, job: Job) -> None:
        self.axis = axis
        self.patch = job.data.patch_voxels
        # an image smaller than a window lies in its middle, in air
        self._padded = [max(size, side) for size, side in zip(shape, self.patch, strict=True)]
        self._before = [(whole - size) // 2 for whole, size in zip(self._padded, shape, strict=True)]
        self._shape = shape
        self._channels = 1 + len(job.data.labels)
        steps = [
            side if side == whole else max(1, int(side * (1 - job.evaluation.overlap)))
            for side, whole in zip(self.patch, self._padded, strict=True)
        ]
        slices = dense_patch_slices(self._padded, self.patch, steps)
        slices = sorted(slices, key=lambda window: window[axis].start)
        self.rows = [list(row) for _, row in groupby(slices, key=lambda window: window[axis].start)]
        self.count = len(slices)

    @torch.no_grad()
    def predict(
        self,
        network: nn.Module,
        mirrored: tuple[int, ...],
        read: ReadPlanes,
        precision: MixedPrecision,
        advance: Callable[[int], None] = lambda windows: None,
    ) -> Iterator[tuple[int, torch.Tensor]]:
        """Yield (first plane, probabilities (1 + organs, x, y, z) float32) from the first plane to the last.

        Args:
            network: in evaluation mode, on the device.
            mirrored: axes (0, 1, 2) along which each window is mirrored before and after the network.
            read: reads planes of the image.
            precision: how to compute, and where.
            advance: told how many windows were done.
        """
        device, axis = precision.device, self.axis
        weights = compute_importance_map(self.patch, mode="gaussian", device=device, dtype=torch.float32)
        held = list(self._padded)
        held[axis] = self.patch[axis]
        sums = torch.zeros(self._channels, *held, device=device)
        norm = torch.zeros(1, *held, device=device)
        empty: torch.Tensor | None = None  # weighted logits of an empty window
        starts = [row[0][axis].start for row in self.rows]
        for start, following, row in zip(starts, [*starts[1:], self._padded[axis]], self.rows, strict=True):
            image = self._read_padded(read, start, start + held[axis]).to(device, torch.float32)
            boxes = [
                (slice(None), *(slice(None) if each == axis else part for each, part in enumerate(window)))
                for window in row
            ]
            for box in boxes:
                norm[box] += weights
            full, blank = ([box for box in boxes if bool(image[box].any()) is wanted] for wanted in (True, False))
            for batch in _batches(full, 4 if device.type == "cuda" else 1):
                logits = _mirrored(network, torch.stack([image[box] for box in batch]), mirrored, precision)
                for box, values in zip(batch, logits, strict=True):
                    sums[box].addcmul_(values, weights)
                advance(len(batch))
            for box in blank:
                if empty is None:
                    empty = _mirrored(network, image[box][None], mirrored, precision)[0] * weights
                sums[box] += empty
            advance(len(blank))
            yield from self._finished(start, following - start, sums, norm)
            sums, norm = (_shifted(values, axis + 1, following - start) for values in (sums, norm))

    def _read_padded(self, read: ReadPlanes, start: int, stop: int) -> torch.Tensor:
        before, size = self._before[self.axis], self._shape[self.axis]
        first, last = max(0, start - before), min(size, stop - before)
        image = read(first, last)
        padding: list[int] = []
        for axis in (2, 1, 0):
            ahead = first + before - start if axis == self.axis else self._before[axis]
            whole = stop - start if axis == self.axis else self._padded[axis]
            padding += [ahead, whole - ahead - image.shape[axis + 1]]
        return functional.pad(image, padding)

    def _finished(
        self, start: int, planes: int, sums: torch.Tensor, norm: torch.Tensor
    ) -> Iterator[tuple[int, torch.Tensor]]:
        """The probabilities of planes that no further window covers, without the padding."""
        inside = [slice(ahead, ahead + size) for ahead, size in zip(self._before, self._shape, strict=True)]
        low, high = max(start, inside[self.axis].start), min(start + planes, inside[self.axis].stop)
        if low < high:
            first = low - inside[self.axis].start
            inside[self.axis] = slice(low - start, high - start)
            box = (slice(None), *inside)
            yield first, (sums[box] / norm[box]).softmax(0)


def _shifted(values: torch.Tensor, axis: int, planes: int) -> torch.Tensor:
    """The values without their first planes, and as many zeros behind them."""
    kept = values.narrow(axis, planes, values.shape[axis] - planes)
    return torch.cat([kept, torch.zeros_like(values.narrow(axis, 0, planes))], axis)


def _batches(boxes: list[tuple[slice, ...]], size: int) -> Iterator[list[tuple[slice, ...]]]:
    for start in range(0, len(boxes), size):
        yield boxes[start : start + size]


def _mirrored(
    network: nn.Module, patches: torch.Tensor, axes: tuple[int, ...], precision: MixedPrecision
) -> torch.Tensor:
    places = [axis + 2 for axis in axes]
    with precision.autocast():
        logits: torch.Tensor = network(patches.flip(places) if places else patches)
    return (logits.flip(places) if places else logits).float()
