"""Bring every case to one grid: orientation RAS, one spacing, intensities 0..1, organs numbered from 1."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import monai
import numpy as np
import torch
from monai.data.meta_tensor import MetaTensor
from monai.transforms import (
    Compose,
    CropForegroundd,
    EnsureChannelFirstd,
    LoadImaged,
    Orientationd,
    ScaleIntensityRanged,
    Spacingd,
)
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from fl_app.config import DataSettings
from fl_app.data.cases import Case
from fl_app.files import replacing

BODY_HU = -700  # what is denser is body; the air around it is cut off: nothing to learn there, and windows to skip
BODY_MARGIN = 2  # voxels of air that stay
# MONAI tells of a GPU's DICOM decoder that it has not found, each time it reads a NIfTI file
logging.getLogger("monai.data.nvimgcodec_pydicom_plugin").setLevel(logging.ERROR)

_FORMAT = 1  # raise when what is stored for a case changes
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
    loaded = Compose(
        [
            LoadImaged("label", reader="NibabelReader"),
            EnsureChannelFirstd("label"),
            Orientationd("label", "RAS", labels=None),
        ]
    )({"label": str(path)})["label"]
    return _number_organs(loaded, settings)


def sample_centres(indices: torch.Tensor) -> torch.Tensor:
    """At most 100,000 of some flat voxel indices, as int32: all of them would take more memory than the image."""
    if len(indices) > _CENTRES:
        chosen = np.random.default_rng(0).choice(len(indices), _CENTRES, replace=False)
        indices = indices[torch.from_numpy(np.sort(chosen))]
    return indices.to(torch.int32).contiguous()


def _prepare_cached(case: Case, settings: DataSettings, cache: Path | None) -> PreparedCase:
    if cache is None:
        return _prepared(case, _prepare(case, settings))
    path = cache / f"{_key(case, settings)}.safetensors"
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
    lower, upper = settings.window_hu
    both = ("image", "label")
    loaded = Compose(
        [
            LoadImaged(both, reader="NibabelReader"),
            EnsureChannelFirstd(both),
            Orientationd(both, "RAS", labels=None),
            Spacingd(both, pixdim=settings.spacing_mm, mode=("bilinear", "nearest")),
            CropForegroundd(
                both,
                source_key="image",
                select_fn=lambda image: image > BODY_HU,
                margin=BODY_MARGIN,
                allow_smaller=True,
            ),
            ScaleIntensityRanged("image", a_min=lower, a_max=upper, b_min=0.0, b_max=1.0, clip=True),
        ]
    )({"image": str(case.image), "label": str(case.label)})
    image, label = loaded["image"], _number_organs(loaded["label"], settings)
    flat_label = label.as_tensor().flatten()
    inside = (image.as_tensor().flatten() > 0) & (flat_label == 0)
    return {
        "image": image.as_tensor().to(torch.float16).contiguous(),
        "label": label.as_tensor().contiguous(),
        "affine": image.affine.to(torch.float64).contiguous(),
        "organ_centres": sample_centres(torch.nonzero(flat_label)[:, 0]),
        "body_centres": sample_centres(torch.nonzero(inside)[:, 0]),
    }


def _number_organs(label: MetaTensor, settings: DataSettings) -> MetaTensor:
    """Organs become 1, 2, ... in the order of the job; every other value becomes background."""
    numbered = torch.zeros_like(label, dtype=torch.uint8)
    for number, value in enumerate(settings.labels.values(), start=1):
        numbered[label == value] = number
    return numbered


def _key(case: Case, settings: DataSettings) -> str:
    """SHA-256 over the files' bytes and all that shapes the result."""
    digest = hashlib.sha256()
    shaping = settings.model_dump(include={"labels", "spacing_mm", "window_hu"}, mode="json")
    digest.update(json.dumps([_FORMAT, monai.__version__, shaping]).encode())
    for path in (case.image, case.label):
        if path is not None:
            digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()[:32]
