"""What a user means by the inputs on the command line."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fl_app.data.dicom.files import looks_like_dicom
from fl_app.data.dicom.series import open_series
from fl_app.data.pairs import images_and_labels, list_folder, stem
from fl_app.errors import DataError, UsageError
from fl_app.prediction.scan import NiftiScan, Scan
from fl_app.prediction.zarr_files import ZarrScan

_ZARR = ".zarr"
PROBABILITY = "_probability"  # how names of files that we wrote end, which are no scans


@dataclass(frozen=True)
class Input:
    """One scan to predict.

    Attributes:
        name: what files about it are called.
        path: a NIfTI file, a zarr array, or the folder of a DICOM series.
        is_dicom: whether it is the last.
    """

    name: str
    path: Path
    is_dicom: bool

    @property
    def is_zarr(self) -> bool:
        """Whether it is a zarr array."""
        return _is_zarr(self.path)

    def open(self, scratch: Path) -> Scan:
        """The image; ``scratch`` is an existing folder for what is unpacked. Raises DataError."""
        if self.is_zarr:
            return ZarrScan(self.path, scratch)
        return open_series(self.path) if self.is_dicom else NiftiScan(self.path, scratch)


def _is_zarr(path: Path) -> bool:
    return path.is_dir() and path.name.lower().endswith(_ZARR)


def find_inputs(paths: Sequence[Path]) -> list[Input]:
    """The scans that some files and folders hold, each with a name of its own.

    Raises:
        DataError: a path holds no scan.
        UsageError: two scans would share a name.
    """
    found = [each for path in paths for each in _inputs_of(path)]
    first: dict[str, Input] = {}
    for each in found:
        twin = first.setdefault(each.name, each)
        if twin is not each:
            raise UsageError(
                f"{twin.path} and {each.path} would both be named {each.name}; predict them into different folders"
            )
    return found


def _inputs_of(path: Path) -> list[Input]:
    if not path.exists():
        raise DataError(f"{path}: there is no such file or folder")
    if _is_zarr(path):
        return [Input(path.name[: -len(_ZARR)], path, False)]
    if path.is_file():
        if path.name.lower().endswith((".nii", ".nii.gz")):
            return [Input(stem(path), path, False)]
        if looks_like_dicom(path):
            raise DataError(f"{path} is one DICOM file; name the folder of its series instead")
        raise DataError(
            f"{path} is no scan; understood are .nii and .nii.gz files, .zarr arrays, and folders of DICOM series"
        )
    images = [image for image in images_and_labels(path)[0] if not stem(image).endswith(PROBABILITY)]
    if images:
        return [Input(stem(image), image, False) for image in images]
    if any(looks_like_dicom(file) for file in list_folder(path)):
        return [Input(path.resolve().name, path, True)]
    raise DataError(f"{path} holds no NIfTI images and no DICOM series; sub-folders are not searched")
