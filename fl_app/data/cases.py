"""Find the images and labels in a site's folder, whatever the usual layout.

Understood are the Medical Segmentation Decathlon, nnU-Net version 2 and plain folders of pairs; see
`find_cases`. Files are only listed here; `fl_app.data.checks` reads them.
"""

import json
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fl_app.data.findings import Finding, error, warning
from fl_app.data.pairs import (
    Pairs,
    images_and_labels,
    list_folder,
    pair_by_name,
    pair_single_case,
    stem,
    subfolders,
    volumes,
)
from fl_app.errors import DataError

_UNDERSTOOD = """\
Understood are:
  Medical Segmentation Decathlon  imagesTr/NAME.nii.gz, labelsTr/NAME.nii.gz, with or without dataset.json
  nnU-Net version 2               imagesTr/NAME_0000.nii.gz, labelsTr/NAME.nii.gz, dataset.json
  two folders                     images/NAME.nii.gz, labels/NAME.nii.gz (or NAME_label, NAME_seg, NAME_mask)
  one folder                      NAME.nii.gz, NAME_label.nii.gz (or NAME_seg, NAME_mask)
  one folder for each case        NAME/ct.nii.gz, NAME/label.nii.gz"""
_IMAGE_FOLDERS = ("images", "image", "imgs", "img")
_LABEL_FOLDERS = ("labels", "label", "masks", "mask", "segmentations", "segmentation", "seg")
_ENTRY = '{"image": "...", "label": "..."}'


@dataclass(frozen=True)
class Case:
    """One image (CT) and its label map on the same grid, .nii or .nii.gz.

    The name is unique within the folder and stable, and never leaves the site. The label is None where
    its file is missing.
    """

    name: str
    image: Path
    label: Path | None


@dataclass(frozen=True)
class Dataset:
    """The cases of one site, sorted by name, and what was odd about their files."""

    folder: Path
    layout: str
    cases: tuple[Case, ...]
    problems: tuple[Finding, ...] = ()


class _NothingFoundError(DataError):
    """The folder holds no data set of its own (its sub-folders may)."""


def find_cases(folder: Path) -> Dataset:
    """Find the images and labels of one site; raise DataError where there are none.

    The layout is recognised in this order: dataset.json; imagesTr and labelsTr; an images and a labels
    folder; pairs in the folder itself; one sub-folder for each case. Hidden files (macOS "._NAME") and
    the Decathlon's test images, which have no labels, are left out.
    """
    list_folder(folder)  # says in one sentence why a folder cannot be read
    for read in (_dataset_json, _training_folders, _two_folders, _one_folder, _case_folders):
        try:
            dataset = read(folder)
        except OSError as problem:  # a folder that may be listed but not entered
            raise DataError(f"{folder} cannot be read: {problem}.") from problem
        if dataset is not None:
            return dataset
    message = f"{folder} holds no images and labels that are understood. "
    if (folder / "dataset.json").exists():
        message += 'Its dataset.json has no "training" list, and there is no imagesTr folder with images. '
    from fl_app.data.dicom.files import holds_dicom  # pydicom is slow to load, and rarely needed here

    if holds_dicom(folder):
        message += "It holds DICOM files: convert them once with `fedspleen import-dicom`. "
    raise _NothingFoundError(message + _UNDERSTOOD)


def find_sites(folder: Path) -> dict[str, Path] | None:
    """Return the sub-folders that each hold a data set, one for each site, sorted by name.

    Returns None when the folder itself is one data set; sub-folders with a single pair each are cases
    of one data set, not sites. Raises DataError where there is neither, or a site's data is malformed.
    """
    try:
        find_cases(folder)
        return None
    except _NothingFoundError:
        sites = {subfolder.name: subfolder for subfolder in subfolders(folder) if _holds_data(subfolder)}
        if not sites:
            raise
        return sites


def _holds_data(folder: Path) -> bool:
    try:
        find_cases(folder)
        return True
    except _NothingFoundError:
        return False


def _dataset(folder: Path, layout: str, pairs: Pairs, problems: Iterable[Finding]) -> Dataset:
    cases = (Case(name, image, label) for name, (image, label) in sorted(pairs.items()))
    return Dataset(folder, layout, tuple(cases), tuple(problems))


# ---- layouts known by their file names


def _training_folders(folder: Path) -> Dataset | None:
    images, labels = volumes(folder / "imagesTr"), volumes(folder / "labelsTr")
    label_stems = {stem(label) for label in labels}
    # other data sets number their cases NAME_0001: channels only where no label has the same name
    if labels and all(re.search(r"_\d{4}$", stem(image)) and stem(image) not in label_stems for image in images):
        return _nnunet(folder)
    pairs, problems = pair_by_name(folder, images, labels)
    return _dataset(folder, "Medical Segmentation Decathlon", pairs, problems) if pairs else None


def _nnunet(folder: Path) -> Dataset | None:
    images = volumes(folder / "imagesTr")
    for image in images:
        if re.search(r"_(?!0000)\d{4}$", stem(image)):
            raise DataError(f"{image} is a second channel; only single-channel CT is supported.")
    pairs, problems = pair_by_name(folder, images, volumes(folder / "labelsTr"))
    named = {name.removesuffix("_0000"): files for name, files in pairs.items()}
    return _dataset(folder, "nnU-Net", named, problems) if pairs else None


def _two_folders(folder: Path) -> Dataset | None:
    names = {subfolder.name.lower(): subfolder for subfolder in subfolders(folder)}
    image_folder = next((names[name] for name in _IMAGE_FOLDERS if name in names), None)
    label_folder = next((names[name] for name in _LABEL_FOLDERS if name in names), None)
    if image_folder is None or label_folder is None:
        return None
    pairs, problems = pair_by_name(folder, volumes(image_folder), volumes(label_folder))
    return _dataset(folder, "images and labels folders", pairs, problems) if pairs else None


def _one_folder(folder: Path) -> Dataset | None:
    images, labels = images_and_labels(folder)
    pairs, problems = pair_single_case(folder, folder) or pair_by_name(folder, images, labels)
    # images alone may be anything, such as a stray one above the sites' folders
    return _dataset(folder, "pairs in one folder", pairs, problems) if pairs and labels else None


def _case_folders(folder: Path) -> Dataset | None:
    cases: Pairs = {}
    problems: list[Finding] = []
    for subfolder in subfolders(folder):
        images, labels = images_and_labels(subfolder)
        single = pair_single_case(folder, subfolder)
        has_its_own = (subfolder / "dataset.json").exists() or _training_folders(subfolder) or _two_folders(subfolder)
        if has_its_own or (images and single is None):
            return None  # a data set of its own: a site, not a case
        pairs, odd = single or pair_by_name(folder, images, labels)
        cases.update((subfolder.name, files) for files in pairs.values())
        problems += odd
    labelled = any(label for _, label in cases.values())
    return _dataset(folder, "one folder for each case", cases, problems) if labelled else None


# ---- dataset.json: Decathlon and nnU-Net


def _dataset_json(folder: Path) -> Dataset | None:
    path = folder / "dataset.json"
    if not path.exists():
        return None
    description = _read_object(path)
    for key in ("channel_names", "modality"):
        channels = description.get(key, {})
        if not isinstance(channels, (dict, list, str)):
            raise DataError(f'{path}: "{key}" must be an object such as {{"0": "CT"}}, not {_show(channels)}.')
        if not isinstance(channels, str) and len(channels) > 1:
            number = len(channels)
            raise DataError(f'{path}: "{key}" has {number} channels; only single-channel CT is supported.')
    ending = description.get("file_ending", ".nii.gz")
    if ending not in (".nii.gz", ".nii"):
        raise DataError(f'{path}: "file_ending" must be ".nii.gz" or ".nii", not {_show(ending)}.')
    if "channel_names" in description or "file_ending" in description:
        return _nnunet(folder)
    return _decathlon(path, description["training"]) if "training" in description else None


def _read_object(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as problem:
        raise DataError(f"{path} cannot be read: {problem.strerror or problem}.") from problem
    except RecursionError as problem:
        raise DataError(f"{path} is not valid JSON: it is nested too deeply.") from problem
    except ValueError as problem:
        raise DataError(f"{path} is not valid JSON: {problem}.") from problem
    if not isinstance(value, dict):
        raise DataError(f"{path} must hold a JSON object, not {_show(value)}.")
    return value


def _decathlon(path: Path, training: object) -> Dataset:
    """Read the "training" list, which alone says what is used."""
    folder = path.parent
    if not isinstance(training, list) or not training:
        raise DataError(f'{path}: "training" must be a list of {_ENTRY}, not {_show(training)}.')
    pairs: Pairs = {}
    problems: list[Finding] = []
    for number, entry in enumerate(training, start=1):
        if not isinstance(entry, dict) or "image" not in entry:
            raise DataError(f'{path}: entry {number} of "training" must be {_ENTRY}, not {_show(entry)}.')
        image = _entry_path(path, number, entry["image"])
        label = None if entry.get("label") is None else _entry_path(path, number, entry["label"])
        if image.name.startswith("."):
            continue
        if not _is_file(image) and _is_file(image.with_name(f"{stem(image)}_0000.nii.gz")):
            image = image.with_name(f"{stem(image)}_0000.nii.gz")  # nnU-Net version 1 lists NAME, stores NAME_0000
        shown = image.relative_to(folder)
        name = "_".join(shown.with_name(stem(image)).parts).removeprefix("imagesTr_")
        if not _is_file(image):
            problem = "dataset.json lists this image, but there is no such file."
            remedy = "Copy the image there, or take its entry out of dataset.json."
            problems.append(error("missing-image", shown.as_posix(), problem, remedy))
        elif name in pairs:
            problem = f"dataset.json lists an image of this name before: {pairs[name][0].relative_to(folder)}."
            remedy = "Keep one of the entries; the first one is used."
            problems.append(error("same-name", shown.as_posix(), problem, remedy))
        else:
            pairs[name] = (image, label if label and _is_file(label) else None)
    listed = {image for image, _ in pairs.values()}
    unlisted = [image.name for image in volumes(folder / "imagesTr") if image not in listed]
    if unlisted:
        shown_names = ", ".join(unlisted[:3]) + (", ..." if len(unlisted) > 3 else "")
        problem = f"Images in imagesTr that are not listed are not used ({len(unlisted)}): {shown_names}."
        remedy = 'Add them to "training" in dataset.json if they are meant to be used.'
        problems.append(warning("unlisted-image", path.name, problem, remedy))
    return _dataset(folder, "Medical Segmentation Decathlon", pairs, problems)


def _entry_path(path: Path, number: int, entry: object) -> Path:
    """Return the file that an entry names, which must lie inside the folder of dataset.json."""
    if not isinstance(entry, str) or not entry or not entry.isprintable():
        raise DataError(f'{path}: entry {number} of "training" must name a file, not {_show(entry)}.')
    # by the text alone: files may well be symbolic links to a storage elsewhere
    inside = Path(os.path.normpath(entry))
    if inside.is_absolute() or inside.parts[:1] in ((), ("..",)):
        raise DataError(f'{path}: entry {number} of "training" leaves the folder: {_show(entry)}.')
    return path.parent / inside


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # a name too long for the file system
        return False


def _show(value: object) -> str:
    """Return a value of a JSON file, shortened, as it is written there."""
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."
