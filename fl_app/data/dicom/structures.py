"""Organs drawn in DICOM, as SEG or RTSTRUCT, as masks on the grid of the series that they belong to."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import highdicom
import numpy as np
import pydicom
from matplotlib.path import Path as Polygon
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from fl_app.data.dicom.series import LPS_TO_RAS, CtSeries
from fl_app.data.geometry import FloatArray
from fl_app.errors import DataError

MODALITIES = ("SEG", "RTSTRUCT")
Mask = NDArray[np.bool_]  # (columns, rows, slices)
_OFF_GRID = 0.05  # of a voxel, that a segmentation may lie beside its image
_OFF_PLANE = 0.25  # of a slice's distance, that a contour may lie beside its slice


def normal_name(name: str) -> str:
    """An organ's name without differences of writing: "Left_Kidney " is "left kidney"."""
    return re.sub(r"[\s_-]+", " ", name).strip().lower()


def referenced_series(header: Dataset) -> str:
    """The identifier of the image series that a SEG or RTSTRUCT says it was drawn on; empty where it says nothing."""
    if header.Modality == "SEG":
        named = [item.get("SeriesInstanceUID") for item in header.get("ReferencedSeriesSequence") or ()]
    else:
        named = [
            series.get("SeriesInstanceUID")
            for frame in header.get("ReferencedFrameOfReferenceSequence") or ()
            for study in frame.get("RTReferencedStudySequence") or ()
            for series in study.get("RTReferencedSeriesSequence") or ()
        ]
    return str(named[0] or "") if named else ""


class Structures:
    """What is drawn in one SEG or RTSTRUCT file.

    Args:
        path: the file.

    Attributes:
        names: of all that is drawn, as written there.

    Raises:
        DataError: it cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._dataset: Any = pydicom.dcmread(path)
            self._is_seg = self._dataset.Modality == "SEG"
            if self._is_seg:
                self._dataset = highdicom.seg.Segmentation.from_dataset(self._dataset, copy=False)
                segments = self._dataset.SegmentSequence
                self._numbers = [(str(item.SegmentLabel), int(item.SegmentNumber)) for item in segments]
            else:
                rois = self._dataset.StructureSetROISequence
                self._numbers = [(str(item.ROIName), int(item.ROINumber)) for item in rois]
        except (OSError, EOFError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise DataError(f"{path.name} is no complete segmentation: {error}") from None
        self.names = [name for name, _ in self._numbers]

    def mask(self, name: str, series: CtSeries) -> Mask:
        """All that is drawn under a name, on the series' grid.

        Raises:
            DataError: it lies on another grid, or is drawn in another way than closed planar contours.
        """
        numbers = [number for each, number in self._numbers if each == name]
        draw = self._draw_segment if self._is_seg else self._draw_contours
        mask = np.zeros(series.shape, dtype=bool)
        try:
            for number in numbers:
                draw(number, name, series, mask)
        except (ValueError, TypeError, KeyError, AttributeError, RuntimeError, IndexError) as error:
            raise DataError(f"{name} cannot be read: {' '.join(str(error).split())}") from None
        return mask

    def _draw_segment(self, number: int, name: str, series: CtSeries, mask: Mask) -> None:
        volume = self._dataset.get_volume(segment_numbers=[number])
        drawn = np.argwhere(volume.array[..., 0] >= 0.5)
        places = _to_voxels(series, drawn @ volume.affine[:3, :3].T + volume.affine[:3, 3])
        whole = np.rint(places).astype(int)
        if len(places) and np.abs(places - whole).max() > _OFF_GRID:
            raise DataError(f"{name} lies on another grid than the series; export it on the images' own")
        if len(places) and ((whole < 0) | (whole >= series.shape)).any():
            raise DataError(f"{name} lies partly outside the series; some of its slices are missing")
        mask[tuple(whole.T)] = True

    def _draw_contours(self, number: int, name: str, series: CtSeries, mask: Mask) -> None:
        loops: dict[int, list[FloatArray]] = defaultdict(list)
        for contour in self._contours(number):
            kind = str(contour.ContourGeometricType)
            if kind not in ("CLOSED_PLANAR", "CLOSEDPLANAR_XOR"):
                raise DataError(f"{name} is drawn as {kind}; only closed planar contours enclose an organ")
            points = _to_voxels(series, np.asarray(contour.ContourData, np.float64).reshape(-1, 3))
            if np.ptp(points[:, 2]) > _OFF_PLANE:
                raise DataError(f"{name} has contours that do not lie in a slice's plane; export them on the images")
            depth = float(points[:, 2].mean())
            if abs(depth - round(depth)) > _OFF_PLANE or not 0 <= round(depth) < series.shape[2]:
                raise DataError(f"{name} has contours where the series has no slice; some of its slices are missing")
            loops[round(depth)].append(points[:, :2])
        for place, polygons in loops.items():
            for polygon in polygons:
                _toggle_inside(mask[:, :, place], polygon)

    def _contours(self, number: int) -> Iterator[Dataset]:
        for item in self._dataset.ROIContourSequence:
            if int(item.ReferencedROINumber) == number:
                yield from item.get("ContourSequence") or ()


def _toggle_inside(plane: Mask, polygon: FloatArray) -> None:
    """Switch the voxels whose centres a polygon encloses: a contour inside another one cuts a hole (even-odd rule)."""
    low = np.maximum(np.floor(polygon.min(axis=0)).astype(int), 0)
    high = np.minimum(np.ceil(polygon.max(axis=0)).astype(int) + 1, plane.shape)
    if len(polygon) < 3 or (low >= high).any():
        return
    columns, rows = np.meshgrid(*(np.arange(*ends) for ends in zip(low, high, strict=True)), indexing="ij")
    inside = Polygon(polygon, closed=False).contains_points(np.column_stack([columns.ravel(), rows.ravel()]))
    plane[low[0] : high[0], low[1] : high[1]] ^= inside.reshape(columns.shape)


def _to_voxels(series: CtSeries, points_lps: FloatArray) -> FloatArray:
    """Points (n, 3) in mm of the patient as DICOM has them, in columns, rows and slices of the series."""
    inverse = np.linalg.inv(LPS_TO_RAS @ series.affine)
    voxels: FloatArray = points_lps @ inverse[:3, :3].T + inverse[:3, 3]
    return voxels
