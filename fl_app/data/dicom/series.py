"""One CT series as a volume: sorted, in Hounsfield units, in RAS; or the reason why it is none."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.pixels import apply_rescale

from fl_app.data.dicom.files import DicomFile, by_series, read_headers
from fl_app.data.geometry import FloatArray
from fl_app.data.pairs import list_folder
from fl_app.errors import DataError

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
_NEEDED = ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "Rows", "Columns")
_MOST_TILTED_DEGREES = 0.5  # as for NIfTI volumes
_UNEVEN = 0.05  # of a slice's distance
_REFUSED_MODALITIES = {"SEG", "RTSTRUCT", "SR", "PR", "KO", "REG", "RTDOSE", "RTPLAN"}  # beside images


class CtSeries:
    """A CT series on its own grid, read slice by slice.

    Args:
        name: what files about it are called.
        files: all files of the series; localisers among them are left out.

    Attributes:
        shape: columns, rows, slices.
        affine: (4, 4) float64, voxel to mm in RAS+.
        headers: of the slices, in the order of the last axis.

    Raises:
        DataError: it is no CT, or no evenly spaced straight stack of slices in Hounsfield units.
    """

    def __init__(self, name: str, files: Sequence[DicomFile]) -> None:
        self.name = name
        slices = [file for file in files if not is_localiser(file.header)]
        _check_images(name, [file.header for file in slices])
        first = slices[0].header
        along_x, along_y = np.reshape(np.asarray(first.ImageOrientationPatient, np.float64), (2, 3))
        normal = np.cross(along_x, along_y)
        slices.sort(key=lambda file: float(normal @ _position(file.header)))
        positions = np.array([_position(file.header) for file in slices])
        _check_stack(name, positions, normal)
        spacing_y, spacing_x = (float(size) for size in first.PixelSpacing)
        lps = np.eye(4)
        lps[:3, 0], lps[:3, 1] = along_x * spacing_x, along_y * spacing_y
        lps[:3, 2] = (positions[-1] - positions[0]) / (len(slices) - 1)
        lps[:3, 3] = positions[0]
        self.affine: FloatArray = LPS_TO_RAS @ lps
        self.shape = (int(first.Columns), int(first.Rows), len(slices))
        self.headers = [file.header for file in slices]
        self._paths = [file.path for file in slices]

    def read(self, start: int, stop: int) -> NDArray[np.float32]:
        """HU of the slices ``start`` to ``stop`` (excluded): (columns, rows, stop - start).

        Raises:
            DataError: a slice is damaged, or compressed in a way that pydicom cannot decode here.
        """
        volume = np.empty((*self.shape[:2], stop - start), np.float32)
        for place, path in enumerate(self._paths[start:stop]):
            try:
                dataset = pydicom.dcmread(path)
                # pydicom gives (row, column)
                volume[:, :, place] = apply_rescale(dataset.pixel_array, dataset).T
            except (
                OSError,
                EOFError,
                ValueError,
                AttributeError,
                KeyError,
                RuntimeError,
                NotImplementedError,
            ) as error:
                raise DataError(f"{path} cannot be decoded: {' '.join(str(error).split())}") from None
        return volume


def open_series(folder: Path) -> CtSeries:
    """The one CT series in a folder.

    Raises:
        DataError: there is none, there are several, or it is not to be used.
    """
    series = by_series(read_headers(list_folder(folder)))
    if not series:
        raise DataError(f"{folder} holds no DICOM files")
    images = {uid: files for uid, files in series.items() if is_image(files[0].header)}
    if not images:
        raise DataError(f"{folder} holds no images, only {_names(files[0].header for files in series.values())}")
    usable = {uid: files for uid, files in images.items() if not all(is_localiser(file.header) for file in files)}
    if not usable:
        raise DataError(f"{folder} holds localisers only, no CT slices")
    if len(usable) > 1:
        counts = " and ".join(str(len(files)) for files in usable.values())
        raise DataError(f"{folder} holds {len(usable)} series (of {counts} files); put each into a folder of its own")
    return CtSeries(folder.resolve().name, next(iter(usable.values())))


def is_image(header: Dataset) -> bool:
    """Whether a file is an image rather than something said about one."""
    return str(header.get("Modality", "")) not in _REFUSED_MODALITIES


def is_localiser(header: Dataset) -> bool:
    """Whether an image is a scout view for planning the scan."""
    return "LOCALIZER" in [str(word).upper() for word in header.get("ImageType") or ()]


def _names(headers: Any) -> str:
    return ", ".join(sorted({str(header.get("Modality", "unknown")) for header in headers}))


def _check_images(name: str, headers: Sequence[Dataset]) -> None:
    """Refuse what is no CT, or whose slices are of different kinds."""
    if not headers:
        raise DataError(f"{name}: a localiser, no CT slices")
    modalities = _names(headers)
    if modalities != "CT":
        raise DataError(f"{name}: its modality is {modalities}, and the model is for CT")
    if any(int(header.get("NumberOfFrames") or 1) > 1 for header in headers):
        raise DataError(f"{name}: multi-frame (enhanced) CT; export it as one file a slice")
    for header in headers:
        missing = [keyword for keyword in _NEEDED if not header.get(keyword)]
        if missing:
            raise DataError(f"{name}: a slice has no {missing[0]}; export the series again from its original")
        if header.get("RescaleSlope") is None or header.get("RescaleIntercept") is None:
            raise DataError(f"{name}: a slice has no rescale slope and intercept, so its Hounsfield units are unknown")
        if str(header.get("RescaleType") or "HU") not in ("HU", "US"):
            raise DataError(f"{name}: its values are {header.RescaleType}, not Hounsfield units")
        if int(header.get("SamplesPerPixel", 1)) != 1:
            raise DataError(f"{name}: its pixels are colours, not CT values")
    for keyword in ("Rows", "Columns"):
        if len({int(header[keyword].value) for header in headers}) > 1:
            raise DataError(f"{name}: its slices differ in {keyword}; keep the slices of one reconstruction")
    for keyword, tolerance in (("PixelSpacing", 1e-4), ("ImageOrientationPatient", 1e-3)):
        values = np.array([[float(number) for number in header[keyword].value] for header in headers])
        if np.ptp(values, axis=0).max() > tolerance:
            raise DataError(f"{name}: its slices differ in {keyword}; keep the slices of one reconstruction")
    if len(headers) < 2:
        raise DataError(f"{name}: only one slice, and a volume needs at least two")


def _check_stack(name: str, positions: NDArray[np.float64], normal: NDArray[np.float64]) -> None:
    """Refuse slices, sorted by position, that leave gaps, coincide, or are shifted against each other."""
    steps = np.diff(positions @ normal)
    usual = float(np.median(steps))
    same = int((steps < 0.01).sum())
    if same:
        raise DataError(f"{name}: {same} slices lie where another one lies; remove the duplicates")
    drift = np.linalg.norm(positions[-1] - positions[0] - normal * ((positions[-1] - positions[0]) @ normal))
    tilt = float(np.degrees(np.arctan2(drift, steps.sum())))
    if tilt > _MOST_TILTED_DEGREES:
        raise DataError(
            f"{name}: its slices are sheared by {tilt:.1f} degrees (gantry tilt); resample it onto a straight grid, "
            "for example with dcm2niix"
        )
    uneven = np.flatnonzero(np.abs(steps - usual) > _UNEVEN * usual)
    if not len(uneven):
        return
    gaps = steps[uneven] / usual
    if (gaps > 1.5).all() and (np.abs(gaps - np.rint(gaps)) < 0.1).all():
        missing = int((np.rint(gaps) - 1).sum())
        raise DataError(
            f"{name}: {missing} of {len(positions) + missing} slices are missing, the first after slice "
            f"{uneven[0] + 1}; export the whole series again"
        )
    raise DataError(
        f"{name}: its slices are not evenly spaced ({steps.min():.2f} to {steps.max():.2f} mm); "
        "resample it onto an even grid"
    )


def _position(header: Dataset) -> NDArray[np.float64]:
    return np.asarray(header.ImagePositionPatient, np.float64)
