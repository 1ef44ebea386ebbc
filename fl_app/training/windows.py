"""Windowed inference of a volume tile by tile, and within a tile with one row of windows in memory.

As many windows with the same weights as MONAI's `sliding_window_inference`, but evenly spread as in nnU-Net: MONAI's
last one may cover nearly what the one before it does, while the others overlap no more than they must. Sums of MONAI's
span the whole volume; here a window that reaches into several tiles is computed for each, so no seam shows. The network
sees an empty window (air, and what is darker than the HU window) once: all others of that kind have the same answer.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from itertools import groupby, pairwise, product

import torch
from monai.data.utils import compute_importance_map
from torch import nn
from torch.nn import functional

from fl_app.config import Job
from fl_app.data.grid import Box
from fl_app.training.precision import MixedPrecision

ReadBox = Callable[[Box], torch.Tensor]  # (channels, x, y, z) of a box
Triple = tuple[int, int, int]

TILE_BYTES = 400 * 10**6  # of a tile's sums, which are held for one row of windows
_YIELDED_VALUES = 2**24  # at one time


class Windows:
    """All windows of one prepared image, row by row along an axis.

    Args:
        shape: of the prepared image, x y z.
        axis: along which rows follow each other: 0, 1 or 2.
        job: size of the windows, how many at one time, and least overlap. Where a GPU takes one by one the sums are
            in the machine's memory.
    """

    def __init__(self, shape: Triple, axis: int, job: Job) -> None:
        self.axis = axis
        self.patch = job.window
        self._at_once = job.evaluation.windows_at_once
        # an image smaller than a window lies in its middle, in air
        self._padded = [max(size, side) for size, side in zip(shape, self.patch, strict=True)]
        self._before = [(whole - size) // 2 for whole, size in zip(self._padded, shape, strict=True)]
        self._shape = shape
        self._channels = 1 + len(job.data.labels)
        places = [
            [slice(start, start + side) for start in _spread(whole, side, job.evaluation.overlap)]
            for side, whole in zip(self.patch, self._padded, strict=True)
        ]
        windows = [(x, y, z) for x, y, z in product(*places)]
        self._windows: list[Box] = sorted(windows, key=lambda window: window[axis].start)

    def tiles(self, pieces: int = 1) -> list[Box]:
        """Cut the image into tiles, as few as memory allows.

        Args:
            pieces: at least so many along the axis, if the image is so many windows long.
        """
        place = math.isqrt(TILE_BYTES // (4 * (self._channels + 1) * self.patch[self.axis]))
        flat = math.prod(size for axis, size in enumerate(self._shape) if axis != self.axis) <= place * place
        parts = []
        for axis, size in enumerate(self._shape):
            least = 1 if flat else math.ceil(size / place)
            count = min(pieces, math.ceil(size / self.patch[axis])) if axis == self.axis else least
            edges = [size * number // count for number in range(count + 1)]
            parts.append([slice(*pair) for pair in pairwise(edges)])
        return [(x, y, z) for x, y, z in product(*parts)]

    def count(self, tile: Box) -> int:
        """How many windows reach into a tile."""
        return len(self._reaching(self._inside(tile)))

    def sums_on(self, precision: MixedPrecision) -> torch.device:
        """Where the windows' sums are: in the machine's memory where that of the device is scarce."""
        return torch.device("cpu") if self._at_once == 1 else precision.device

    @torch.no_grad()
    def predict(
        self,
        network: nn.Module,
        mirrored: tuple[int, ...],
        read: ReadBox,
        precision: MixedPrecision,
        tile: Box,
        advance: Callable[[int], None] = lambda windows: None,
    ) -> Iterator[tuple[int, torch.Tensor]]:
        """Yield (first plane, probabilities (1 + organs, x, y, z) float32) of a tile, its planes in order.

        Args:
            network: in evaluation mode, on the device.
            mirrored: axes (0, 1, 2) along which each window is mirrored before and after the network.
            read: reads a box of the image, (1, x, y, z).
            precision: how to compute, and where.
            tile: what is wanted of the image.
            advance: told how many windows were done.
        """
        axis, device = self.axis, self.sums_on(precision)
        at_once = self._at_once if precision.device.type == "cuda" else 1
        weights = compute_importance_map(self.patch, mode="gaussian", device=device, dtype=torch.float32)
        wanted = self._inside(tile)
        windows = self._reaching(wanted)
        held = [part.stop - part.start for part in wanted]
        held[axis] = self.patch[axis]
        sums = torch.zeros(self._channels, *held, device=device)
        norm = torch.zeros(1, *held, device=device)
        empty: torch.Tensor | None = None  # weighted logits of an empty window
        rows = [list(row) for _, row in groupby(windows, key=lambda window: window[axis].start)]
        starts = [row[0][axis].start for row in rows]
        reach = [slice(min(w[each].start for w in windows), max(w[each].stop for w in windows)) for each in range(3)]
        for start, following, row in zip(starts, [*starts[1:], wanted[axis].stop], rows, strict=True):
            reach[axis] = slice(start, start + held[axis])
            image = self._read_padded(read, reach).to(precision.device)
            inputs = [image[(slice(None), *_shifted(window, reach))] for window in row]
            filled = _filled(inputs)
            full, blank = ([at for at, found in enumerate(filled) if found is kind] for kind in (True, False))
            # one context for the row: the weights are converted once
            with precision.autocast(keep_weights=self._at_once > 1):
                for batch in _batches(full, at_once):
                    images = precision.ready(torch.stack([inputs[place].float() for place in batch]))
                    logits = _mirrored(network, images, mirrored).to(device)
                    for place, values in zip(batch, logits, strict=True):
                        box, part = _overlap(row[place], wanted, axis)
                        sums[box].addcmul_(values[part], weights[part[1:]])
                    advance(len(batch))
                for place in blank:
                    if empty is None:
                        images = precision.ready(inputs[place][None].float())
                        empty = _mirrored(network, images, mirrored)[0].to(device) * weights
                    box, part = _overlap(row[place], wanted, axis)
                    sums[box] += empty[part]
                advance(len(blank))
            for window in row:
                box, part = _overlap(window, wanted, axis)
                norm[box] += weights[part[1:]]
            del image, inputs
            low, high = max(start, wanted[axis].start), min(following, wanted[axis].stop)
            step = max(1, _YIELDED_VALUES * held[axis] // sums.numel())
            for plane in range(low, high, step):
                planes = plane - start, min(step, high - plane)
                ready, weight = (values.narrow(axis + 1, *planes) for values in (sums, norm))
                yield plane - self._before[axis], (ready / weight).softmax(0)
            if following < wanted[axis].stop:
                for values in (sums, norm):
                    _move_on(values, axis + 1, following - start)

    def _inside(self, tile: Box) -> Box:
        """A tile's place in the padded image."""
        x, y, z = (slice(part.start + ahead, part.stop + ahead) for part, ahead in zip(tile, self._before, strict=True))
        return x, y, z

    def _reaching(self, wanted: Box) -> list[Box]:
        return [
            window
            for window in self._windows
            if all(part.start < want.stop and want.start < part.stop for part, want in zip(window, wanted, strict=True))
        ]

    def _read_padded(self, read: ReadBox, wanted: list[slice]) -> torch.Tensor:
        """A box of the padded image."""
        inside, padding = [], []
        for part, ahead, size in zip(wanted, self._before, self._shape, strict=True):
            start, stop = max(0, part.start - ahead), min(size, part.stop - ahead)
            inside.append(slice(start, stop))
            padding.append((start + ahead - part.start, part.stop - ahead - stop))
        x, y, z = inside
        return functional.pad(read((x, y, z)), [each for pair in reversed(padding) for each in pair])


def _spread(whole: int, side: int, overlap: float) -> list[int]:
    """Where windows of one side begin that cover a whole: as few as overlap at least so much, evenly spread."""
    steps = math.ceil((whole - side) / max(1, int(side * (1 - overlap))))
    return [round((whole - side) * step / max(1, steps)) for step in range(steps + 1)]


def _shifted(window: Box, origin: list[slice]) -> tuple[slice, ...]:
    """A window's place in a box."""
    return tuple(slice(w.start - o.start, w.stop - o.start) for w, o in zip(window, origin, strict=True))


def _overlap(window: Box, wanted: Box, axis: int) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
    """Where a window lies in a tile's sums, and which part of the window does; along the axis, all of it."""
    box, part = [slice(None)], [slice(None)]
    for each, (have, want) in enumerate(zip(window, wanted, strict=True)):
        if each == axis:
            box.append(slice(None))
            part.append(slice(None))
            continue
        start, stop = max(have.start, want.start), min(have.stop, want.stop)
        box.append(slice(start - want.start, stop - want.start))
        part.append(slice(start - have.start, stop - have.start))
    return tuple(box), tuple(part)


def _filled(windows: list[torch.Tensor]) -> list[bool]:
    """Whether each of some windows holds something; a GPU is waited for once."""
    if windows[0].is_cuda:
        found: list[bool] = torch.stack([window.any() for window in windows]).tolist()
        return found
    return [_holds_something(window) for window in windows]


def _holds_something(window: torch.Tensor) -> bool:
    """Whether not all of it is 0; a few of its voxels mostly tell."""
    return bool(window[..., ::8, ::8, ::8].any()) or bool(window.any())


def _move_on(values: torch.Tensor, axis: int, planes: int) -> None:
    """Move all planes but the first ones to the front, in place, and put zeros behind them."""
    kept = values.shape[axis] - planes
    for start in range(0, kept, planes):  # pieces that do not overlap where they go
        count = min(planes, kept - start)
        values.narrow(axis, start, count).copy_(values.narrow(axis, start + planes, count))
    values.narrow(axis, kept, planes).zero_()


def _batches(places: list[int], size: int) -> Iterator[list[int]]:
    for start in range(0, len(places), size):
        yield places[start : start + size]


def _mirrored(network: nn.Module, patches: torch.Tensor, axes: tuple[int, ...]) -> torch.Tensor:
    places = [axis + 2 for axis in axes]
    logits: torch.Tensor = network(patches.flip(places) if places else patches)
    return (logits.flip(places) if places else logits).float()
