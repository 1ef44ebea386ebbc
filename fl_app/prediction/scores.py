"""Score predictions against true label maps."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from monai.metrics.hausdorff_distance import compute_hausdorff_distance

from fl_app.config import Job
from fl_app.data.geometry import affine_difference, spacing_mm
from fl_app.data.nifti import UnusableFileError, read_nifti
from fl_app.data.pairs import pair_by_name, volumes
from fl_app.errors import DataError, UsageError
from fl_app.prediction.inputs import Input
from fl_app.prediction.scan import Scan
from fl_app.prediction.slabs import SlabFile
from fl_app.training.metrics import bounding_box, dice, surface_dice


@dataclass(frozen=True)
class OrganScore:
    """One organ of one scan.

    Attributes:
        dice: 0..1; NaN where neither truth nor prediction holds the organ.
        surface_dice: normalised surface distance at the job's tolerance, 0..1; NaN likewise.
        hausdorff95_mm: 95 % Hausdorff distance; infinite where only one of the two holds the organ, NaN likewise.
    """

    dice: float
    surface_dice: float
    hausdorff95_mm: float


def find_labels(inputs: Sequence[Input], labels: Path) -> dict[str, Path]:
    """The true label map of each input, by its name: a file for one input, or a folder of files of the same names.

    Raises:
        DataError: a label is missing.
        UsageError: one label file for several inputs.
    """
    if labels.is_file():
        if len(inputs) > 1:
            raise UsageError(f"--evaluate {labels}: one label file for {len(inputs)} scans; name a folder instead")
        return {inputs[0].name: labels}
    if not labels.is_dir():
        raise DataError(f"--evaluate {labels}: there is no such file or folder")
    pairs, _ = pair_by_name(labels, [labels / f"{each.name}.nii" for each in inputs], volumes(labels))
    missing = [name for name, (_, label) in pairs.items() if label is None]
    if missing:
        raise DataError(f"--evaluate {labels}: there is no label map for {', '.join(missing[:5])}")
    return {name: label for name, (_, label) in pairs.items() if label is not None}


def score(predicted: SlabFile, scan: Scan, label: Path, job: Job) -> dict[str, OrganScore]:
    """Dice, normalised surface distance and 95 % Hausdorff distance of each organ.

    Args:
        predicted: (z, y, x) on the scan's grid, organs numbered from 1.
        scan: the image.
        label: a NIfTI label map on the same grid, with the values of the job's labels.
        job: labels and tolerance.

    Raises:
        DataError: the label cannot be read, or lies on another grid.
    """
    try:
        truth = read_nifti(label, label.name)
    except UnusableFileError as unusable:
        raise DataError(f"{label}: {unusable.finding.problem} {unusable.finding.remedy}") from None
    if truth.voxels.shape != scan.shape:
        sizes = [" x ".join(map(str, shape)) for shape in (truth.voxels.shape, scan.shape)]
        raise DataError(f"{label} has {sizes[0]} voxels, and its image {scan.name} {sizes[1]}")
    difference = affine_difference(scan.affine, truth.affine, scan.shape)
    if difference:
        raise DataError(f"{label} is not in the same place as its image {scan.name}: {difference}")
    wanted = torch.from_numpy(_numbered(np.rint(truth.voxels), job.data.labels))
    found = torch.from_numpy(predicted.read(0, predicted.shape[0]).T)
    organs, spacing = tuple(job.data.labels), spacing_mm(scan.affine).tolist()
    overlap = dice(found, wanted, organs)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # MONAI's, about itself
        surface = surface_dice(found, wanted, organs, spacing, job.evaluation.surface_tolerance_mm)
        distance = {
            organ: hausdorff95_mm(found == number, wanted == number, spacing)
            for number, organ in enumerate(organs, start=1)
        }
    return {organ: OrganScore(overlap[organ], surface[organ], distance[organ]) for organ in organs}


def hausdorff95_mm(found: torch.Tensor, wanted: torch.Tensor, spacing: Sequence[float]) -> float:
    """The larger of the two directed 95th percentiles of surface distances (Huttenlocher et al., PAMI 1993), by MONAI.

    Args:
        found: mask (x, y, z).
        wanted: likewise.
        spacing: voxel size in mm.

    Returns:
        mm; infinite where one of the masks is empty, NaN where both are.
    """
    if not found.any() or not wanted.any():
        return math.inf if found.any() or wanted.any() else math.nan
    box = bounding_box(found | wanted)
    one_hot = [torch.stack([~mask[box], mask[box]])[None].float() for mask in (found, wanted)]
    return float(compute_hausdorff_distance(*one_hot, percentile=95, spacing=[float(size) for size in spacing]))


def _numbered(voxels: np.ndarray, values: Mapping[str, int]) -> np.ndarray:
    numbered = np.zeros(voxels.shape, np.uint8)
    for number, value in enumerate(values.values(), start=1):
        numbered[voxels == value] = number
    return numbered
