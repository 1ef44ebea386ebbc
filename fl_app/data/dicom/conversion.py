"""A tree of DICOM series with segmentations as plain images and labels: geometry and voxels, no header."""

from __future__ import annotations

import csv
import os
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nibabel
import numpy as np

from fl_app.data.dicom.files import DicomFile, by_series, files_below, read_headers
from fl_app.data.dicom.series import CtSeries, is_image, is_localiser
from fl_app.data.dicom.structures import MODALITIES, Structures, normal_name, referenced_series
from fl_app.errors import DataError
from fl_app.files import replacing

REGISTER = "IDENTIFYING-never-share.csv"  # which case is whose
_COLUMNS = ("case", "series_instance_uid", "folder")


@dataclass
class Report:
    """What became of a tree.

    Attributes:
        converted: by case name, the organs and what is to be known about them.
        known: cases that an earlier import had converted.
        skipped: by folder, why there was nothing to convert.
        refused: by folder, why it could not be converted.
        cautions: about the whole.
    """

    converted: dict[str, str] = field(default_factory=dict)
    known: list[str] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    cautions: list[str] = field(default_factory=list)


def import_tree(
    source: Path, out: Path, labels: Mapping[str, int], say: Callable[[str], None] = lambda line: None
) -> Report:
    """Convert each CT series below a folder that has a SEG or RTSTRUCT.

    Cases are named case-001, case-002, ... and keep their names when more series are imported later, so that none
    moves from the test to the training cases. Which case is whose is written to a register that stays at the site.

    Args:
        source: the tree.
        out: gets images/, labels/ and the register.
        labels: value in the label maps by the name that an organ has in the segmentations.
        say: told about each case when it is converted.

    Raises:
        DataError: the source cannot be read, or the register is damaged.
    """
    report = Report()
    files = []
    for path in files_below(source):
        try:
            files += read_headers([path])
        except DataError as error:
            report.refused[str(path.relative_to(source))] = str(error).replace(f"{path} is ", "", 1)
    series = by_series(file for file in files if is_image(file.header))
    drawn = _by_referenced_series([file for file in files if file.header.get("Modality") in MODALITIES], series)
    register = _read_register(out / REGISTER)
    for uid, slices in sorted(series.items(), key=lambda each: min(file.path for file in each[1])):
        place = _place(slices, source)
        if uid in register:
            report.known.append(register[uid]["case"])
        elif all(is_localiser(file.header) for file in slices):
            report.skipped[place] = "a localiser"
        elif uid not in drawn:
            report.skipped[place] = "no SEG or RTSTRUCT refers to it"
        else:
            last = max((int(row["case"].removeprefix("case-")) for row in register.values()), default=0)
            name = f"case-{last + 1:03}"
            try:
                report.converted[name] = _convert(CtSeries(name, slices), drawn[uid], labels, out)
            except DataError as error:
                report.refused[place] = str(error).removeprefix(f"{name}: ")
                continue
            register[uid] = {"case": name, "series_instance_uid": uid, "folder": place}
            _write_register(out / REGISTER, list(register.values()))
            say(f"{name}: {report.converted[name]}")
    for file in drawn.get("", ()):
        report.refused[str(file.path.relative_to(source))] = "the images that it refers to are not here"
    patients = Counter(str(slices[0].header.get("PatientID", "")) for uid, slices in series.items() if uid in register)
    several = sum(count > 1 for patient, count in patients.items() if patient)
    if several:
        report.cautions.append(
            f"several cases of one patient ({several} such): training and test may share one; keep one case of each"
        )
    return report


def _by_referenced_series(
    drawings: Sequence[DicomFile], series: Mapping[str, Sequence[DicomFile]]
) -> dict[str, list[DicomFile]]:
    """Segmentations by the series they belong to; under "" those whose images are not here."""
    found: dict[str, list[DicomFile]] = {}
    for drawing in drawings:
        uid = referenced_series(drawing.header)
        found.setdefault(uid if uid in series else "", []).append(drawing)
    return found


def _convert(series: CtSeries, drawings: Sequence[DicomFile], labels: Mapping[str, int], out: Path) -> str:
    """Write one case; return its organs in words."""
    wanted = {normal_name(name): value for name, value in labels.items()}
    label_map = np.zeros(series.shape, np.uint8 if max(labels.values()) < 256 else np.uint16)
    voxels: Counter[str] = Counter()
    others: set[str] = set()
    notes: list[str] = []
    for drawing in drawings:
        structures = Structures(drawing.path)
        for name in dict.fromkeys(structures.names):
            value = wanted.get(normal_name(name))
            if value is None:
                others.add(name)
                continue
            mask = structures.mask(name, series)
            if not mask.any():
                raise DataError(f"{name} encloses no voxel")
            taken = label_map[mask]
            if (taken == value).any():
                raise DataError(f"{name} is drawn twice; keep one segmentation of each series")
            if taken.any():
                notes.append(f"{name} overlaps another organ in {int((taken > 0).sum())} voxels and takes them")
            label_map[mask] = value
            voxels[name] += int(mask.sum())
            filled = np.flatnonzero(mask.any(axis=(0, 1)))
            gaps = int(filled[-1] - filled[0] + 1 - len(filled))
            if gaps:
                notes.append(f"{name} has {gaps} empty slices in its middle")
    if not voxels:
        held = ", ".join(sorted(others)) or "nothing"
        raise DataError(f"none of {', '.join(labels)} is drawn, but {held}; name one with --labels NAME=VALUE")
    _write_case(series, label_map, out)
    millilitres = abs(float(np.linalg.det(series.affine[:3, :3]))) / 1000
    found = ", ".join(f"{name} {count * millilitres:.1f} mL" for name, count in voxels.items())
    return "; ".join([found, *notes])


def _write_case(series: CtSeries, label_map: Any, out: Path) -> None:
    whole = all(
        float(number).is_integer()
        for header in series.headers
        for number in (header.RescaleSlope, header.RescaleIntercept)
    )
    image = np.empty(series.shape, np.int16 if whole else np.float32)
    for place in range(series.shape[2]):
        image[:, :, place] = series.read(place, place + 1)[:, :, 0]
    # the label first: a case without its image is none
    for folder, voxels in (("labels", label_map), ("images", image)):
        path = out / folder / f"{series.name}.nii.gz"
        path.parent.mkdir(parents=True, exist_ok=True)
        volume = nibabel.Nifti1Image(voxels, series.affine)
        volume.set_sform(series.affine, 1)
        volume.set_qform(series.affine, 1)
        volume.header.set_xyzt_units("mm")
        temporary = path.with_name(f".{os.getpid()}.{path.name}")
        try:
            nibabel.save(volume, temporary)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


def _place(slices: Sequence[DicomFile], source: Path) -> str:
    """The folder of a series, below the source."""
    return min(file.path for file in slices).parent.relative_to(source).as_posix()


def _read_register(path: Path) -> dict[str, dict[str, str]]:
    if not path.exists():
        return {}
    with path.open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    if any(set(row) != set(_COLUMNS) or not re.fullmatch(r"case-\d+", row["case"] or "") for row in rows):
        raise DataError(f"{path} is damaged; restore it from a backup, or import everything into a new folder")
    return {row["series_instance_uid"]: row for row in rows}


def _write_register(path: Path, rows: Sequence[Mapping[str, str]]) -> None:
    with replacing(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, _COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
