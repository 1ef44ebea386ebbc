"""Bring every case to one grid: orientation RAS, one spacing, intensities 0..1, organs numbered from 1."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import monai
import nibabel
import numpy as np
import torch
from monai.data.meta_tensor import MetaTensor
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from fl_app.config import DataSettings
from fl_app.data.cases import Case
from fl_app.data.content import content_digest
from fl_app.data.geometry import Volume, spacing_mm
from fl_app.data.grid import Grid, spaced
from fl_app.data.nifti import UnusableFileError, read_nifti
from fl_app.data.resampling import around, in_order, resample_linearly, resample_to_nearest
from fl_app.errors import DataError
from fl_app.files import replacing

BODY_HU = -700  # what is denser is body; the air around it is cut off: nothing to learn there, and windows to skip
BODY_MARGIN = 2  # voxels of air that stay

_FORMAT = 2  # raise when what is stored for a case changes
_CENTRES = 100_000  # stored patch centres of a kind and case: enough to be as good as all of them


@dataclass(frozen=True)
class PreparedCase:
    """A case on the job's grid.

    Attributes:
        name: the case's name; it never leaves the site.
        image: (1, x, y, z) float16, the HU window mapped to 0..1, RAS.
        label: (1, x, y, z) uint8, 0 background, 1.. the organs in the order of the job's labels.
        affine: (4, 4) float64, voxel of the prepared grid to mm in RAS.
        organ_centres: flat indices of organ voxels (at most 100,000, a random sample).
        body_centres: flat indices of voxels inside the body that are no organ (likewise).
        source: where the case came from, to score predictions on its own grid.
    """

    name: str
    image: torch.Tensor
    label: torch.Tensor
    affine: torch.Tensor
    organ_centres: torch.Tensor
    body_centres: torch.Tensor
    source: Case


def prepare_cases(cases: Sequence[Case], settings: DataSettings, cache: Path | None) -> list[PreparedCase]:
    """Prepare cases, or take them from the cache, whose key is the files' content and the settings."""
    return [_prepare_cached(case, settings, cache) for case in cases]


def load_label(path: Path, settings: DataSettings) -> MetaTensor:
    """A case's label on its own grid in RAS: (1, x, y, z), organs numbered from 1, with its affine."""
    voxels, grid = _read(path)
    return MetaTensor(torch.from_numpy(_number_organs(voxels, settings))[None], affine=torch.from_numpy(grid.affine))


def windowed(hounsfield: torch.Tensor, settings: DataSettings) -> torch.Tensor:
    """HU with the job's window mapped to 0..1, as float16; the HU are written over."""
    lower, upper = settings.window_hu
    return hounsfield.sub_(lower).div_(upper - lower).clamp_(0, 1).to(torch.float16)


def sample_centres(wanted: torch.Tensor) -> torch.Tensor:
    """At most 100,000 flat indices, int32, of the voxels wanted: all of them would take more memory than the image."""
    indices = np.flatnonzero(wanted.numpy())
    if len(indices) > _CENTRES:
        indices = indices[np.sort(np.random.default_rng(0).choice(len(indices), _CENTRES, replace=False))]
    return torch.from_numpy(indices.astype(np.int32))


def _prepare_cached(case: Case, settings: DataSettings, cache: Path | None) -> PreparedCase:
    if cache is None:
        return _prepared(case, _prepare(case, settings))
    path = cache / f"{_key(case, settings, cache)}.safetensors"
    try:
        tensors = load_file(path)
    except (FileNotFoundError, SafetensorError):
        tensors = _prepare(case, settings)
        with replacing(path) as temporary:
            save_file(tensors, temporary)
    return _prepared(case, tensors)


def _prepared(case: Case, tensors: dict[str, torch.Tensor]) -> PreparedCase:
    return PreparedCase(name=case.name, source=case, **tensors)


def _prepare(case: Case, settings: DataSettings) -> dict[str, torch.Tensor]:
    assert case.label is not None  # a case without a label does not pass the data check
    voxels, source = _read(case.image)
    # the check has made sure that the label lies where the image does
    organs = _number_organs(_read(case.label)[0], settings)
    wanted = spaced(source, settings.spacing_mm)
    # a value between two voxels reaches as far as one of them: further out nothing needs to be computed
    reach = int(np.ceil((spacing_mm(source.affine) / settings.spacing_mm).max()))
    near = wanted.part(*around(voxels > BODY_HU, source, wanted, BODY_MARGIN + reach))
    hounsfield = resample_linearly(voxels, source, near)
    start, stop = around(hounsfield.numpy() > BODY_HU, near, near, BODY_MARGIN)
    body, grid = tuple(slice(first, last) for first, last in zip(start, stop, strict=True)), near.part(start, stop)
    image = in_order(windowed(hounsfield[body], settings))[None]
    label = resample_to_nearest(organs, source, grid)[None].contiguous()
    filled = torch.from_numpy(image.numpy().view(np.int16) > 0)  # the same bits: far quicker to compare
    return {
        "image": image,
        "label": label,
        "affine": torch.from_numpy(grid.affine),
        "organ_centres": sample_centres(label > 0),
        "body_centres": sample_centres(filled & (label == 0)),
    }


def _read(path: Path) -> tuple[Volume, Grid]:
    """A file's voxels (x, y, z) turned to RAS, and their grid."""
    try:
        stored = read_nifti(path, path.name)
    except UnusableFileError as unusable:
        raise DataError(f"{path}: {unusable.finding.problem} {unusable.finding.remedy}") from None
    turn = nibabel.io_orientation(stored.affine)
    voxels = nibabel.apply_orientation(stored.voxels, turn)
    x, y, z = stored.voxels.shape
    return voxels, Grid((x, y, z), stored.affine).in_ras()


def _number_organs(label: Volume, settings: DataSettings) -> NDArray[np.uint8]:
    """Organs become 1, 2, ... in the order of the job; every other value becomes background."""
    whole = np.rint(label) if label.dtype.kind == "f" else label  # rescaling in the header leaves 0.99999
    numbered = np.zeros_like(label, np.uint8)
    for number, value in enumerate(settings.labels.values(), start=1):
        np.copyto(numbered, number, where=whole == value)
    return numbered


def _key(case: Case, settings: DataSettings, cache: Path) -> str:
    """SHA-256 over the files' contents and all that shapes the result."""
    digest = hashlib.sha256()
    shaping = settings.model_dump(include={"labels", "spacing_mm", "window_hu"}, mode="json")
    digest.update(json.dumps([_FORMAT, monai.__version__, shaping]).encode())
    for path in (case.image, case.label):
        if path is not None:
            digest.update(content_digest(path, cache).encode())
    return digest.hexdigest()[:32]
