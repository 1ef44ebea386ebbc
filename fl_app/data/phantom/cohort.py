"""Writes a cohort of sites to disk, in the layout of the Medical Segmentation Decathlon."""

from __future__ import annotations

import gzip
import json
import math
import re
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import nibabel
import numpy as np
from numpy.typing import NDArray

from fl_app.data.phantom.case import make_case
from fl_app.data.phantom.sites import SiteCharacter, character_of
from fl_app.errors import UsageError

# raise it when the pictures change, so that a cohort made by an older version is made anew
COHORT_VERSION = 1
RECORD = "cohort.json"


def make_cohort(
    folder: Path,
    sites: int = 3,
    seed: int = 0,
    cases: Sequence[int] | None = None,
    detail: float = 1.0,
    progress: Callable[[str], None] | None = None,
) -> list[Path]:
    """Writes folder/site-1, folder/site-2, ... and returns these folders.

    `cases`: number of cases for each site; left out, each site's own. `detail` multiplies the matrix: 1.0 is
    about 122 x 104 x 45 voxels of 3 x 3 x 4.5 mm, 4.2 is 512 x 437 x 190. `progress` gets one line for each
    case. A folder that already holds this very cohort is left as it is; one with another phantom cohort is
    replaced.
    """
    characters = [character_of(site) for site in range(sites)]
    counts = _checked(sites, seed, cases, detail, characters)
    folder = Path(folder).resolve()
    record = {"version": COHORT_VERSION, "sites": sites, "seed": seed, "cases": counts, "detail": detail}
    made = [folder / f"site-{site + 1}" for site in range(sites)]
    if _read(folder / RECORD) == record and _is_whole(folder, counts):
        return made
    _refuse_others_files(folder)

    folder.parent.mkdir(parents=True, exist_ok=True)
    # built beside the folder and renamed, so a kill never leaves a half cohort that looks whole
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as workshop:
        building = Path(workshop) / "new"
        for site, (character, count) in enumerate(zip(characters, counts, strict=True)):
            _write_site(building / f"site-{site + 1}", site, character, count, seed, detail, progress)
        (building / RECORD).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        if folder.exists():
            folder.rename(Path(workshop) / "old")
        building.rename(folder)
    return made


def _case_name(site: int, case: int) -> str:
    """Returns a case's file name, unlike that of any other site's case."""
    return f"spleen_s{site + 1}_{case + 1:03d}.nii.gz"


def _is_whole(folder: Path, counts: Sequence[int]) -> bool:
    """Tells whether every file of a recorded cohort is still there."""
    return all(
        (folder / f"site-{site + 1}" / kind / _case_name(site, case)).is_file()
        for site, count in enumerate(counts)
        for kind in ("imagesTr", "labelsTr")
        for case in range(count)
    ) and all((folder / f"site-{site + 1}" / "dataset.json").is_file() for site in range(len(counts)))


def _refuse_others_files(folder: Path) -> None:
    """Raises UsageError when the folder holds anything but an older phantom cohort."""
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder} is a file: a phantom cohort needs a folder.")
    entries = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    strangers = sorted(name for name in entries if name != RECORD and not re.fullmatch(r"site-\d+", name))
    if strangers or (entries and RECORD not in entries):
        example = (strangers or sorted(entries))[0]
        raise UsageError(f"{folder} holds more than a phantom cohort ({example}): give a new folder.")


def _checked(
    sites: int, seed: int, cases: Sequence[int] | None, detail: float, characters: Sequence[SiteCharacter]
) -> list[int]:
    """Returns the number of cases of each site, or says which argument does not fit."""
    if sites < 1:
        raise UsageError(f"A phantom cohort needs at least one site, not {sites}.")
    if seed < 0:
        raise UsageError(f"The seed of a phantom cohort is a whole number of 0 or more, not {seed}.")
    if not (math.isfinite(detail) and 0 < detail <= 8):
        raise UsageError(f"The detail of a phantom cohort lies above 0 and at most at 8, not at {detail}.")
    wanted = [character.cases for character in characters] if cases is None else cases
    counts = [int(count) for count in wanted]
    if len(counts) != sites:
        raise UsageError(f"{sites} sites need {sites} numbers of cases, not {len(counts)}.")
    if min(counts) < 1:
        raise UsageError(f"Each site of a phantom cohort needs at least one case, not {min(counts)}.")
    return counts


def _write_site(
    folder: Path,
    site: int,
    character: SiteCharacter,
    count: int,
    seed: int,
    detail: float,
    progress: Callable[[str], None] | None,
) -> None:
    """Writes one site: images, labels and dataset.json."""
    for name in ("imagesTr", "labelsTr"):
        (folder / name).mkdir(parents=True)
    listing = []
    for case in range(count):
        image, label, affine = make_case(character, (seed, site, case), detail)
        name = _case_name(site, case)
        _write_nifti(folder / "imagesTr" / name, image, affine)
        _write_nifti(folder / "labelsTr" / name, label, affine)
        listing.append({"image": f"./imagesTr/{name}", "label": f"./labelsTr/{name}"})
        if progress is not None:
            progress(f"site-{site + 1}: case {case + 1} of {count}")
    dataset = {
        "name": "Spleen",
        "description": f"Phantom CT of the upper abdomen, no patient's data: {character.name}",
        "reference": "fedspleen phantom cohort",
        "licence": "Apache-2.0",
        "release": str(COHORT_VERSION),
        "tensorImageSize": "3D",
        "modality": {"0": "CT"},
        "labels": {"0": "background", "1": "spleen"},
        "numTraining": count,
        "numTest": 0,
        "training": listing,
        "test": [],
    }
    (folder / "dataset.json").write_text(json.dumps(dataset, indent=2) + "\n", encoding="utf-8")


def _write_nifti(path: Path, values: NDArray[np.generic], affine: NDArray[np.float64]) -> None:
    """Writes a compressed NIfTI file without the time in it: the same values make the same bytes."""
    image = nibabel.Nifti1Image(values, affine)
    image.header.set_xyzt_units("mm")
    with path.open("wb") as raw, gzip.GzipFile("", "wb", compresslevel=2, fileobj=raw, mtime=0) as packed:
        packed.write(image.to_bytes())


def _read(path: Path) -> object:
    """Returns a JSON file's content, or None where there is none to read."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
