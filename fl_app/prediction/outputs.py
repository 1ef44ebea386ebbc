"""What a prediction leaves: label maps and probabilities as NIfTI, tables as CSV."""

from __future__ import annotations

import csv
import gzip
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import nibabel
import numpy as np
from numpy.typing import NDArray

from fl_app.errors import DataError
from fl_app.files import replacing
from fl_app.prediction.scan import NiftiScan, Scan
from fl_app.prediction.slabs import SlabFile

# what a header may say of patient, study or file; none of it is geometry
_FREE_TEXTS = ("descrip", "aux_file", "intent_name", "db_name")


def geometry_header(scan: Scan) -> nibabel.Nifti1Header:
    """A NIfTI header with the geometry of a scan and nothing else.

    A NIfTI scan's own is kept (shape, sform and qform with their codes, units); others get one from their affine.
    """
    if not isinstance(scan, NiftiScan):
        header = nibabel.Nifti1Image(np.broadcast_to(np.uint8(0), scan.shape), scan.affine).header.copy()
        header.set_xyzt_units("mm")
        return header
    kind = nibabel.Nifti2Header if isinstance(scan.header, nibabel.Nifti2Header) else nibabel.Nifti1Header
    header = kind.from_header(scan.header, check=False)
    header.extensions.clear()
    for field in _FREE_TEXTS:
        if field in header.keys():  # noqa: SIM118 - NIfTI-2 has fewer
            header[field] = b""
    header["cal_min"] = header["cal_max"] = 0
    return header


def write_labels(path: Path, scan: Scan, labels: SlabFile, values: Sequence[int]) -> None:
    """Write a label map as NIfTI on the scan's grid.

    Args:
        path: the .nii.gz file.
        scan: the image that was segmented.
        labels: (z, y, x), organs numbered from 1.
        values: the value of each organ in the file.
    """
    dtype = np.uint8 if max(values) < 256 else np.uint16
    table = np.array([0, *values], dtype)
    with writing_nifti(path, geometry_header(scan), dtype) as stream:
        for _, slab in labels.slabs():
            write_slab(stream, table[slab], dtype)


@contextmanager
def writing(path: Path, mode: str = "wb") -> Iterator[IO[Any]]:
    """A stream whose file appears under its name only when it is complete."""
    text: dict[str, Any] = {} if "b" in mode else {"encoding": "utf-8", "newline": ""}
    with replacing(path) as temporary, temporary.open(mode, **text) as stream:
        yield stream
        stream.flush()
        os.fsync(stream.fileno())


@contextmanager
def writing_nifti(path: Path, header: nibabel.Nifti1Header, dtype: Any) -> Iterator[gzip.GzipFile]:
    """A compressed NIfTI file whose voxels are then written in the file's order, x fastest."""
    header = header.copy()
    header.set_data_dtype(dtype)
    header.set_slope_inter(1, 0)
    header["vox_offset"] = 0  # the header's end, as there are no extensions
    # the same voxels give the same file: no time, no name
    with writing(path) as stream, gzip.GzipFile("", "wb", 4, stream, mtime=0) as packed:
        header.write_to(packed)
        yield packed


def write_slab(stream: gzip.GzipFile, slab: NDArray[Any], dtype: Any) -> None:
    """Append (z, y, x) voxels to a NIfTI stream."""
    stream.write(np.ascontiguousarray(slab, np.dtype(dtype).newbyteorder("<")).tobytes())


def update_table(path: Path, columns: Sequence[str], rows: Sequence[Mapping[str, Any]], key: str) -> None:
    """Write a CSV table; rows of other scans that it holds already stay.

    Args:
        path: the table.
        columns: its heading.
        rows: the new rows.
        key: the column that says which scan a row is about.

    Raises:
        DataError: there is a file of this name with other columns.
    """
    kept: list[Mapping[str, Any]] = []
    if path.exists():
        with path.open(newline="", encoding="utf-8") as stream:
            table = csv.DictReader(stream)
            if list(table.fieldnames or ()) != list(columns):
                raise DataError(
                    f"{path} exists and is no such table of fedspleen; move it away, or choose another --out"
                )
            new = {str(row[key]) for row in rows}
            kept = [row for row in table if row[key] not in new]
    with writing(path, "w") as stream:
        writer = csv.DictWriter(stream, columns)
        writer.writeheader()
        writer.writerows([*kept, *rows])
