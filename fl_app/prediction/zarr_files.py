"""Volumes as zarr arrays: (x, y, z) with an attribute ``affine``, 4 x 4, voxel to mm in RAS+ as NIfTI's."""

from __future__ import annotations

import math
import shutil
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fl_app.data.geometry import FloatArray, check_geometry
from fl_app.errors import DataError, UsageError
from fl_app.prediction.scan import Scan
from fl_app.prediction.slabs import SlabFile

_LARGEST_CHUNK = 256 * 2**20  # bytes; a chunk is read whole
_CHUNK = 128  # voxels along each axis of what is written


class ZarrScan:
    """A zarr array, copied chunk by chunk into a file of slices.

    Args:
        path: the array's folder.
        scratch: an existing folder for that file.

    Raises:
        DataError: it is damaged, or no volume with a geometry.
    """

    def __init__(self, path: Path, scratch: Path) -> None:
        self.path = path
        self.name = path.name[: -len(path.suffix)]
        array = _open(path)
        if len(array.shape) != 3 or np.dtype(array.dtype).kind not in "iuf":
            raise DataError(f"{path} is not one 3D array of numbers (x, y, z)")
        self.shape = (int(array.shape[0]), int(array.shape[1]), int(array.shape[2]))
        self.affine = _affine(path, dict(array.attrs))
        for finding in check_geometry(path.name, {"sform_code": 2, "qform_code": 0}, self.affine):
            if finding.severity == "error":
                raise DataError(f"{path}: {finding.problem} {finding.remedy}")
        self._slices = SlabFile(scratch / "input", self.shape[::-1], array.dtype)
        sides = [int(side) for side in array.chunks]
        if math.prod(sides) * np.dtype(array.dtype).itemsize > _LARGEST_CHUNK:
            raise DataError(f"{path}: its chunks are {sides} voxels, and each is read whole; store it in smaller ones")
        for corner in product(*(range(0, size, side) for size, side in zip(self.shape, sides, strict=True))):
            box = [slice(start, start + side) for start, side in zip(corner, sides, strict=True)]
            try:
                values = np.asarray(array[tuple(box)])
            except (OSError, ValueError, RuntimeError) as error:
                raise DataError(f"{path} is damaged: {' '.join(str(error).split())}; export it again") from None
            self._slices.write_box(box[::-1], values.T)

    def read(self, start: int, stop: int) -> NDArray[np.float32]:
        """As `Scan.read`."""
        return self._slices.read(start, stop).T.astype(np.float32)


def write_zarr(path: Path, scan: Scan, labels: SlabFile, values: Sequence[int]) -> None:
    """Write a label map as a zarr array with the scan's affine, in chunks of 128 x 128 x 128 voxels.

    Args:
        path: the folder of the array; one that exists is replaced.
        scan: the image that was segmented.
        labels: (z, y, x), organs numbered from 1.
        values: the value of each organ in the array.
    """
    dtype = np.uint8 if max(values) < 256 else np.uint16
    table = np.array([0, *values], dtype)
    temporary = path.with_name(f".{path.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    array = _zarr().create(shape=scan.shape, chunks=(_CHUNK,) * 3, dtype=dtype, store=str(temporary), overwrite=True)
    array.attrs["affine"] = np.asarray(scan.affine, np.float64).tolist()
    for corner in product(*(range(0, size, _CHUNK) for size in scan.shape)):
        box = [slice(start, min(start + _CHUNK, size)) for start, size in zip(corner, scan.shape, strict=True)]
        array[tuple(box)] = table[labels.read_box(box[::-1])].T
    old = path.with_name(f".{path.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if path.exists():
        path.rename(old)
    temporary.rename(path)
    shutil.rmtree(old, ignore_errors=True)


def _open(path: Path) -> Any:
    zarr = _zarr()
    try:
        array = zarr.open(str(path), mode="r")
    except Exception as error:  # noqa: BLE001 - zarr's versions raise classes of their own
        raise DataError(f"{path} cannot be read as zarr: {' '.join(str(error).split())}") from None
    if not hasattr(array, "chunks"):
        raise DataError(f"{path} is a zarr group; store the volume as one array")
    return array


def _affine(path: Path, attributes: dict[str, Any]) -> FloatArray:
    remedy = "store voxel to mm in RAS+ as NIfTI does, 4 x 4 numbers"
    if "affine" not in attributes:
        raise DataError(f"{path} has no attribute affine, so nobody knows which side is left; {remedy}")
    try:
        affine: FloatArray = np.asarray(attributes["affine"], np.float64)
    except (TypeError, ValueError):
        affine = np.zeros(0)
    if affine.shape != (4, 4) or not np.isfinite(affine).all():
        raise DataError(f"{path}: its attribute affine is not 4 x 4 numbers; {remedy}")
    return affine


def _zarr() -> Any:
    try:
        import zarr
    except ImportError:
        raise UsageError("zarr arrays need the package zarr: pip install 'fedspleen[large]'") from None
    return zarr
