"""A prediction's stages before and after the network, from one file on disk to the next: prepare, bring back."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from fl_app.config import DataSettings
from fl_app.data.checks import check_hounsfield_range
from fl_app.data.findings import Finding
from fl_app.data.grid import Box, Grid, slab_ranges, spaced
from fl_app.data.preparation import BODY_HU, BODY_MARGIN, windowed
from fl_app.data.resampling import resample_box
from fl_app.errors import DataError
from fl_app.prediction.outputs import geometry_header, write_slab, writing_nifti
from fl_app.prediction.scan import Scan
from fl_app.prediction.slabs import SlabFile
from fl_app.training.evaluation import most_probable

Advance = Callable[[float], None]  # told the share that is done, 0 to 1


@dataclass(frozen=True)
class Prepared:
    """A scan on the model's grid, on disk.

    Attributes:
        image: float16, as training prepares images; the planes along ``axis`` come first.
        axis: along which the scan's slices are stacked, 0, 1 or 2.
        body: the box without the air around the body.
        grid: of that box.
        findings: what is odd about the values.
    """

    image: SlabFile
    axis: int
    body: Box
    grid: Grid
    findings: list[Finding]

    def read(self, box: Box) -> torch.Tensor:
        """A part of the body's box: (1, x, y, z) float16."""
        there = [
            slice(body.start + part.start, body.start + part.stop) for body, part in zip(self.body, box, strict=True)
        ]
        planes = self.image.read_box(planes_first(there, self.axis))
        return torch.from_numpy(np.moveaxis(planes, 0, self.axis))[None]


class Probabilities(Protocol):
    """All classes' probabilities on the prepared grid.

    Attributes:
        classes: how many.
    """

    classes: int

    def read(self, box: Box) -> NDArray[np.float32]:
        """A part of the grid: (classes, x, y, z)."""


def prepare(scan: Scan, settings: DataSettings, scratch: Path) -> Prepared:
    """Bring a scan to the model's grid, and find the body in it.

    Raises:
        DataError: it cannot be read, or its values are no Hounsfield units of a body.
    """
    native = Grid(scan.shape, scan.affine)
    whole, axis = spaced(native.in_ras(), settings.spacing_mm), native.stacking_axis
    planes = [whole.shape[axis], *(size for each, size in enumerate(whole.shape) if each != axis)]
    image = SlabFile(scratch / "image", planes, np.float16)
    filled = [np.zeros(size, dtype=bool) for size in whole.shape]
    low, high = np.inf, -np.inf

    def read(box: Box) -> NDArray[np.float32]:
        nonlocal low, high
        values = scan.read(box[2].start, box[2].stop)
        if not np.isfinite(values).all():
            raise DataError(f"{scan.name} holds NaN or infinity; export the image again")
        low, high = min(low, float(values.min())), max(high, float(values.max()))
        return values[None, box[0], box[1]]

    for start, stop in slab_ranges(planes, math.prod(scan.shape)):
        slab = whole.slab(axis, start, stop)
        (values,) = resample_box(native, read, whole.box(slab), "border")
        body = (values > BODY_HU).numpy()
        for each in range(3):
            filled[each][slab[each]] |= body.any(axis=tuple({0, 1, 2} - {each}))
        image.write(start, np.moveaxis(windowed(values, settings).numpy(), axis, 0))
    findings = check_hounsfield_range(scan.name, low, high)
    for finding in findings:
        if finding.severity == "error":
            raise DataError(f"{scan.name}: {finding.problem} {finding.remedy}")
    if not filled[0].any():
        raise DataError(f"{scan.name} shows no body: nothing in it is denser than {BODY_HU} HU")
    x, y, z = (_around(profile) for profile in filled)
    return Prepared(image, axis, (x, y, z), whole.box((x, y, z)), findings)


def bring_back(
    probabilities: Probabilities,
    prepared: Prepared,
    scan: Scan,
    outputs: Sequence[Path],
    scratch: Path,
    advance: Advance,
) -> SlabFile:
    """The most probable class on the scan's own grid, by linear interpolation of the probabilities.

    Args:
        probabilities: of all classes, on the prepared grid.
        prepared: where they lie.
        scan: whose grid is wanted.
        outputs: a NIfTI file for each organ's probabilities, or none.
        scratch: an existing folder.
        advance: told the share that is done.

    Returns:
        (z, y, x) uint8 on disk, organs numbered from 1.
    """
    native = Grid(scan.shape, scan.affine)
    labels = SlabFile(scratch / "labels", scan.shape[::-1], np.uint8)

    with ExitStack() as stack:
        header = geometry_header(scan)
        streams = [stack.enter_context(writing_nifti(path, header, np.float32)) for path in outputs]
        for start, stop in slab_ranges(labels.shape, math.prod(prepared.grid.shape), probabilities.classes):
            slab = native.box(native.slab(2, start, stop))
            background, *organs = resample_box(prepared.grid, probabilities.read, slab, "zeros")
            labels.write(start, most_probable(background, organs).numpy().T)
            for stream, organ in zip(streams, organs, strict=False):
                write_slab(stream, organ.numpy().T, np.float32)
            advance(stop / scan.shape[2])
    return labels


def _around(profile: NDArray[np.bool_]) -> slice:
    """From the first to the last filled plane, with a margin."""
    places = np.flatnonzero(profile)
    return slice(max(0, int(places[0]) - BODY_MARGIN), min(len(profile), int(places[-1]) + 1 + BODY_MARGIN))


def planes_first(box: Sequence[slice], axis: int) -> list[slice]:
    """A box in the order of the prepared files: the planes along ``axis`` first, then the other two axes."""
    return [box[axis], *(part for each, part in enumerate(box) if each != axis)]
