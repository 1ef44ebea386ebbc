"""What prediction needs of an image, and NIfTI files as such images."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, Protocol

import nibabel
import numpy as np
from isal import igzip
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError
from nibabel.wrapstruct import WrapStructError
from numpy.typing import NDArray

from fl_app.data.geometry import FloatArray, check_geometry
from fl_app.data.nifti import UNREADABLE
from fl_app.data.pairs import stem
from fl_app.errors import DataError


class Scan(Protocol):
    """An image on its own grid, read slice by slice.

    Attributes:
        name: what files about it are called.
        shape: voxels along x, y, z as stored.
        affine: (4, 4) float64, voxel to mm in RAS+.
    """

    name: str
    shape: tuple[int, int, int]
    affine: FloatArray

    def read(self, start: int, stop: int) -> NDArray[np.float32]:
        """HU of the slices ``start`` to ``stop`` (excluded) along the last axis: (x, y, stop - start)."""


class NiftiScan:
    """A .nii or .nii.gz file; a compressed one is unpacked once into a scratch folder.

    Args:
        path: the file.
        scratch: an existing folder for temporary files.

    Raises:
        DataError: it is missing, damaged, or not one 3D volume with a geometry.
    """

    def __init__(self, path: Path, scratch: Path) -> None:
        self.path = path
        self.name = stem(path)
        try:
            self._image: Any = nibabel.load(_unpacked(path, scratch))
        except FileNotFoundError:
            raise DataError(f"{path}: there is no such file") from None
        except (*UNREADABLE, ImageFileError, HeaderDataError, WrapStructError, ValueError) as error:
            raise DataError(f"{path} cannot be read as NIfTI: {_one_line(error)}; copy or export it again") from None
        sizes = self._image.shape
        if not isinstance(self._image, nibabel.Nifti1Pair) or self._image.get_data_dtype().kind not in "iuf":
            raise DataError(f"{path} is not a NIfTI volume of one number a voxel; export the CT as NIfTI")
        if len(sizes) not in (3, 4) or sizes[3:] not in ((), (1,)):
            found = " x ".join(map(str, sizes))
            raise DataError(f"{path} is not one 3D volume: its dimensions are {found}; store one volume in each file")
        self.header = self._image.header
        self.affine: FloatArray = np.asarray(self._image.affine, np.float64)
        self.shape = (int(sizes[0]), int(sizes[1]), int(sizes[2]))
        for finding in check_geometry(path.name, self.header, self.affine):
            if finding.severity == "error":
                raise DataError(f"{path}: {finding.problem} {finding.remedy}")

    def read(self, start: int, stop: int) -> NDArray[np.float32]:
        """As `Scan.read`."""
        try:
            values = np.asarray(self._image.dataobj[:, :, start:stop], np.float32)
        except (OSError, EOFError, ValueError) as error:
            raise DataError(
                f"{self.path} is cut short or damaged: {_one_line(error)}; copy or export it again"
            ) from None
        return values.reshape(*self.shape[:2], stop - start)


def _unpacked(path: Path, scratch: Path) -> Path:
    """The file itself, or its unpacked copy, whose checksum has been verified."""
    if not path.name.lower().endswith(".gz"):
        return path
    copy = scratch / "input.nii"
    with igzip.open(path) as packed, copy.open("wb") as stream:
        shutil.copyfileobj(packed, stream, 2**20)
    return copy


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
