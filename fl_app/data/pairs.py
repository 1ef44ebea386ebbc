"""List the NIfTI files of a folder and give each image its label, by their names alone."""

import re
from collections.abc import Iterable
from pathlib import Path

from fl_app.data.findings import Finding, error, warning
from fl_app.errors import DataError

_IMAGE_WORDS = "ct|images?|img|scan|volume|0000"
_LABEL_WORDS = "labels?|segmentations?|seg|masks?"
_LABEL_NAMES = f"{_LABEL_WORDS}|organs?|spleen"  # an organ says "label" only as the whole name

Pairs = dict[str, tuple[Path, Path | None]]  # case name: image, label


def list_folder(folder: Path) -> list[Path]:
    """Return what is in a folder, sorted, without hidden files (macOS leaves "._NAME" beside each file)."""
    try:
        return sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    except FileNotFoundError as problem:
        raise DataError(f"{folder} does not exist.") from problem
    except NotADirectoryError as problem:
        raise DataError(f"{folder} is a file, not a folder.") from problem
    except (OSError, ValueError) as problem:
        raise DataError(f"{folder} cannot be read: {problem}.") from problem


def subfolders(folder: Path) -> list[Path]:
    """Return the folders in a folder, sorted."""
    return [path for path in list_folder(folder) if path.is_dir()]


def volumes(folder: Path) -> list[Path]:
    """Return the NIfTI files of a folder, sorted; none where there is no such folder."""
    files = list_folder(folder) if folder.is_dir() else []
    return [file for file in files if file.name.lower().endswith((".nii", ".nii.gz")) and not file.is_dir()]


def stem(file: Path) -> str:
    """Return a file's name without .nii or .nii.gz."""
    return re.sub(r"\.nii(\.gz)?$", "", file.name, flags=re.IGNORECASE)


def images_and_labels(folder: Path) -> tuple[list[Path], list[Path]]:
    """Return the images and the labels directly in a folder, told apart by their names."""
    files = volumes(folder)
    labels = [file for file in files if _key(file, _LABEL_NAMES, _LABEL_WORDS) is not None]
    return [file for file in files if file not in labels], labels


def pair_by_name(folder: Path, images: Iterable[Path], labels: Iterable[Path]) -> tuple[Pairs, list[Finding]]:
    """Give each image the label of the same name, apart from words such as "_label" or "_ct".

    Returns:
        the pairs by the image's stem, and what was odd.
    """
    problems: list[Finding] = []
    unique: dict[str, Path] = {}
    for image in images:
        if unique.setdefault(stem(image), image) != image:
            problem = f"{unique[stem(image)].name} has the same case name."
            problems.append(error("same-name", _relative(folder, image), problem, "Remove or rename one of the two."))
    by_key = dict(unique)
    for image in unique.values():
        key = _key(image, _IMAGE_WORDS)
        if key is not None:
            by_key.setdefault(key, image)  # the full name of another image goes first

    label_of: dict[Path, Path] = {}
    labels = list(labels)
    for label in labels:
        key = _key(label, _LABEL_NAMES, _LABEL_WORDS)
        match = by_key.get(stem(label)) or (by_key.get(key) if key is not None else None)
        if match is None and len(unique) == len(labels) == 1 and (key == "" or "" in by_key):
            match = next(iter(unique.values()))  # PATIENT with label, or ct with PATIENT_seg
        if match is None:
            remedy = "Add the image, or move the label away."
            problem = "There is no image of this name."
            problems.append(warning("label-without-image", _relative(folder, label), problem, remedy))
        elif match in label_of:
            problem = f"{match.name} has another label, {label_of[match].name}."
            remedy = "Keep one label file for each image."
            problems.append(error("two-labels", _relative(folder, label), problem, remedy))
        else:
            label_of[match] = label
    return {name: (image, label_of.get(image)) for name, image in unique.items()}, problems


def pair_single_case(folder: Path, subfolder: Path) -> tuple[Pairs, list[Finding]] | None:
    """Pair the files of a folder with one case, such as ct.nii.gz and organs.nii.gz; None with more cases.

    Args:
        folder: the data set, which findings are relative to.
        subfolder: the folder of the case, possibly the same.
    """
    images, labels = images_and_labels(subfolder)
    named = [image for image in images if _key(image, _IMAGE_WORDS) == ""]
    if len(images) > 1 and len(named) == 1 and all(_key(label, _LABEL_NAMES) == "" for label in labels):
        others = [image for image in images if image not in named]
        images = named
    elif len(images) == 1:
        others = []
    else:
        return None
    pairs, problems = pair_by_name(folder, images, labels)
    for other in others:
        problem = f"By its name it is neither the image ({images[0].name}) nor a label."
        remedy = "Move it away, or put all labels of a case in one file."
        problems.append(warning("ignored-file", _relative(folder, other), problem, remedy))
    return pairs, problems


def _key(file: Path, names: str, affixes: str | None = None) -> str | None:
    """Return a stem without its word of role ("a" for a_label, "" for label); None without such a word."""
    affixes = affixes or names
    pattern = rf"(?P<head>.+)[-_. ](?:{affixes})|(?:{affixes})[-_. ](?P<tail>.+)|(?:{names})"
    match = re.fullmatch(pattern, stem(file), re.IGNORECASE | re.DOTALL)
    return None if match is None else match["head"] or match["tail"] or ""


def _relative(folder: Path, file: Path) -> str:
    return file.relative_to(folder).as_posix()
