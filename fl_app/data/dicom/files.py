"""Find the DICOM files below a folder, and tell series from series."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import pydicom
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError
from pydicom.misc import is_dicom
from pydicom.uid import MediaStorageDirectoryStorage

from fl_app.data.pairs import list_folder
from fl_app.errors import DataError


@dataclass(frozen=True)
class DicomFile:
    """One DICOM file: where it is, and its header without pixels."""

    path: Path
    header: Dataset


def looks_like_dicom(path: Path) -> bool:
    """Whether a file begins as DICOM files do."""
    try:
        return path.is_file() and is_dicom(path)
    except OSError:
        return False


def read_headers(paths: Iterable[Path]) -> list[DicomFile]:
    """The headers of those files that are DICOM.

    Raises:
        DataError: a file begins as DICOM and is damaged.
    """
    found = []
    for path in paths:
        if not looks_like_dicom(path):
            continue
        try:
            header = pydicom.dcmread(path, stop_before_pixels=True)
            if header.file_meta.get("MediaStorageSOPClassUID") == MediaStorageDirectoryStorage:
                continue
            header.SeriesInstanceUID  # noqa: B018 - parses the header, and every object of a series has one
        except (InvalidDicomError, OSError, EOFError, ValueError, KeyError, AttributeError) as error:
            raise DataError(f"{path} is damaged: {' '.join(str(error).split())}; copy it again") from None
        found.append(DicomFile(path, header))
    return found


def files_below(folder: Path) -> list[Path]:
    """All files below a folder, sorted; hidden ones are left out."""
    found: list[Path] = []
    for path in list_folder(folder):
        if path.is_dir():
            found += files_below(path)
        else:
            found.append(path)
    return found


def holds_dicom(folder: Path) -> bool:
    """Whether there is a DICOM file anywhere below a folder."""
    return any(looks_like_dicom(path) for path in files_below(folder))


def by_series(files: Iterable[DicomFile]) -> dict[str, list[DicomFile]]:
    """Files by the series that they say they belong to."""
    series: dict[str, list[DicomFile]] = defaultdict(list)
    for file in files:
        series[str(file.header.get("SeriesInstanceUID", ""))].append(file)
    return dict(series)
