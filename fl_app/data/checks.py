"""Check a site's images and labels before anything is trained on them: all problems in one list."""

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from scipy import ndimage

from fl_app.data.cases import Case, Dataset
from fl_app.data.findings import Finding, compact_values, error, format_findings, warning
from fl_app.data.geometry import (
    Volume,
    affine_difference,
    body_extent,
    check_geometry,
    is_usable,
    orientation,
    side_of,
)
from fl_app.data.nifti import NiftiVolume, UnusableFileError, read_nifti
from fl_app.data.siblings import CaseFacts, check_siblings

__all__ = ["Finding", "check_cases", "format_findings"]

_LEAST_RANGE_HU = 256
_AIR_HU = -200
_EXTREME_HU = (-10000, 32000)


def check_cases(
    dataset: Dataset, labels: Mapping[str, int], progress: Callable[[int, int], None] | None = None
) -> list[Finding]:
    """Read every file of a data set once, one case at a time, and return all problems found.

    A fourth dimension of size 1 is dropped, as the training's loader does; any other shape than three
    dimensions of at least 2 voxels is an error. Bad files are findings, they never raise.

    Args:
        dataset: what `find_cases` found; its own problems come first in the list.
        labels: the job's labels, name to value; other values of a label map count as background.
        progress: called with (cases done, cases in all) after each case.
    """
    findings = list(dataset.problems)
    if not dataset.cases:
        findings.append(error("no-cases", ".", "There is not a single usable case.", "Add images and labels."))
    declared = {name: value for name, value in labels.items() if value != 0}
    facts: list[CaseFacts] = []
    for done, case in enumerate(dataset.cases, start=1):
        facts.append(_check_case(dataset.folder, case, declared, findings))
        if progress:
            progress(done, len(dataset.cases))
    return findings + check_siblings(facts, declared)


def _check_case(folder: Path, case: Case, labels: Mapping[str, int], findings: list[Finding]) -> CaseFacts:
    """Append a case's problems to the findings and return what its siblings are compared with."""
    facts = CaseFacts(case.image.relative_to(folder).as_posix())
    image = _read(case.image, facts.file, findings)
    if image is not None:
        findings += _check_intensities(facts.file, image.voxels)
        findings += check_geometry(facts.file, image.header, image.affine)
        facts.content = _content(image.voxels)
        if is_usable(image.affine):
            facts.left_right = next((code for code in orientation(image.affine) if code in "LR"), "")
    if case.label is None:
        findings.append(
            error(
                "missing-label",
                facts.file,
                "The image has no label file.",
                "Add the label under the same name, or move the image out of the folder.",
            )
        )
        return facts
    facts.label_file = case.label.relative_to(folder).as_posix()
    label = _read(case.label, facts.label_file, findings)
    if label is None:
        return facts
    bad = _check_label_numbers(facts.label_file, label.voxels)
    if bad:
        findings.append(bad)
        return facts
    organs = np.rint(label.voxels).astype(np.int32) if label.voxels.dtype.kind == "f" else label.voxels
    values = _values(organs)
    facts.label_content = _content(organs)
    facts.present = {name for name, value in labels.items() if value in values}
    undeclared = values - set(labels.values()) - {0}
    if undeclared:
        findings.append(
            warning(
                "undeclared-labels",
                facts.label_file,
                f"Label values {compact_values(undeclared)} are declared nowhere; they count as background.",
                "Nothing, if these organs are not to be learned; otherwise declare them "
                "under `data.labels` in the job file.",
            )
        )
    if image is not None:
        findings += _check_alignment(facts.label_file, image, label)
        if image.voxels.shape == organs.shape and is_usable(image.affine):
            facts.sides = _sides(image, organs, {name: labels[name] for name in facts.present})
    return facts


def _read(path: Path, file: str, findings: list[Finding]) -> NiftiVolume | None:
    try:
        return read_nifti(path, file)
    except UnusableFileError as unusable:
        findings.append(unusable.finding)
        return None


def _check_intensities(file: str, voxels: Volume) -> list[Finding]:
    """Return what tells that an image (x, y, z) is not in Hounsfield units."""
    findings: list[Finding] = []
    finite = voxels
    if voxels.dtype.kind == "f":
        is_finite = np.isfinite(voxels)
        bad = voxels.size - int(np.count_nonzero(is_finite))
        if bad:
            findings.append(
                error(
                    "not-finite",
                    file,
                    f"{bad} voxels are NaN or infinite.",
                    "Export the image again; write -1024 HU where nothing was measured.",
                )
            )
            finite = voxels[is_finite]
    if not finite.size:
        return findings
    return findings + check_hounsfield_range(file, float(finite.min()), float(finite.max()))


def check_hounsfield_range(file: str, low: float, high: float) -> list[Finding]:
    """Return why an image's lowest and highest value do not look like Hounsfield units."""
    findings: list[Finding] = []
    found = f"Its values run from {low:g} to {high:g}"
    remedy = "Convert the image again from DICOM so that it holds Hounsfield units (air -1000, water 0)."
    if high - low < _LEAST_RANGE_HU or low >= 0:
        findings.append(error("not-hounsfield", file, f"{found}: {_looks_like(low, high)}.", remedy))
        return findings
    if low > _AIR_HU:
        findings.append(
            warning(
                "no-air",
                file,
                f"{found}: no air was seen, which surrounds and fills a body.",
                "Check that the image is not cropped or clipped to a window.",
            )
        )
    if low < _EXTREME_HU[0] or high > _EXTREME_HU[1]:
        findings.append(warning("extreme-values", file, f"{found}, beyond any tissue or metal.", remedy))
    return findings


def _looks_like(low: float, high: float) -> str:
    """Return what values that are no Hounsfield units look like."""
    if low == high:
        return "an empty image, all voxels are equal"
    if low >= 0 and high <= 1:
        return "scaled to 0..1, no Hounsfield units"
    if low >= 0 and high <= 255:
        return "grey values 0..255 of a picture, no Hounsfield units"
    if high - low < _LEAST_RANGE_HU:
        return "too narrow for Hounsfield units, it looks normalised or clipped"
    if high <= 4095:
        return "stored values 0..4095 without the rescale intercept (usually -1024), no Hounsfield units"
    return "no negative values, so no Hounsfield units"


def _check_label_numbers(file: str, voxels: Volume) -> Finding | None:
    """Return why the values of a label map (x, y, z) cannot be label values at all."""
    if voxels.dtype.kind == "f":
        # 1/1000: rescaling in the header leaves 0.99999
        with np.errstate(invalid="ignore"):  # infinite minus infinite
            whole = np.abs(voxels - np.rint(voxels)) < 1e-3
        broken = voxels[~whole]
        if broken.size:
            return error(
                "non-integer-labels",
                file,
                f"{broken.size} voxels are not whole numbers, such as {broken[0]:g}.",
                "Store label values as integers; resample label maps with nearest neighbour.",
            )
        if np.abs(voxels).max() >= 2**31:
            return error(
                "non-integer-labels",
                file,
                f"Values up to {np.abs(voxels).max():g} are no label values.",
                "Store label values as small integers.",
            )
    lowest = voxels.min()
    if lowest < 0:
        return error(
            "negative-labels",
            file,
            f"The smallest label value is {lowest:g}; labels are 0 and above.",
            "Give each organ a positive value; check that the file is a label map and not an image.",
        )
    return None


def _check_alignment(file: str, image: NiftiVolume, label: NiftiVolume) -> list[Finding]:
    if image.voxels.shape != label.voxels.shape:
        sizes = [" x ".join(map(str, volume.voxels.shape)) for volume in (label, image)]
        return [
            error(
                "shape-mismatch",
                file,
                f"The label has {sizes[0]} voxels, its image {sizes[1]}.",
                "Resample the label onto the image's grid (nearest neighbour), or pair the right files.",
            )
        ]
    difference = affine_difference(image.affine, label.affine, image.voxels.shape)
    if difference is None:
        return []
    return [
        error(
            "affine-mismatch",
            file,
            f"Image and label are not in the same place: {difference}.",
            "Export the label again from the image it was drawn on; copy the image's affine only after "
            "looking at both in a viewer.",
        )
    ]


def _values(organs: Volume) -> set[int]:
    """Return the values of an integer label map, none negative."""
    highest = int(organs.max())
    if highest >= 2**16:
        return {int(value) for value in np.unique(organs)}
    seen = np.zeros(highest + 1, dtype=bool)  # ten times faster than sorting all voxels
    seen[organs.ravel(order="K")] = True
    return {int(value) for value in np.flatnonzero(seen)}


def _sides(image: NiftiVolume, organs: Volume, present: Mapping[str, int]) -> dict[str, float]:
    """Return for each label present how far to the left (-1) or right (1) of the body it lies."""
    body = body_extent(image.voxels, image.affine)
    if body is None:
        return {}
    boxes = ndimage.find_objects(organs) if present and organs.max() < 2**16 else []
    sides: dict[str, float] = {}
    for name, value in present.items():
        if value <= len(boxes):
            box = boxes[value - 1]
            start = [part.start for part in box]
            sides[name] = side_of(organs[box] == value, start, image.affine, body)
    return sides


def _content(voxels: Volume) -> str:
    """Return a hash of the voxels that is the same however the file stores them (type, compression)."""
    if voxels.dtype.kind == "f":
        voxels = np.rint(np.nan_to_num(voxels))
    if voxels.dtype.itemsize > 2 or voxels.dtype == np.uint16:
        voxels = np.clip(voxels, -32768, 32767)
    digest = hashlib.blake2b(str(voxels.shape).encode(), digest_size=16)
    # transposed: NIfTI's order of axes, so nothing is copied
    digest.update(np.ascontiguousarray(voxels.astype(np.int16, copy=False).T).data)
    return digest.hexdigest()
