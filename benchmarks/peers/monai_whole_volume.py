"""MONAI's spleen tutorial on one scan: the volume, its resampled copy and the sums of all windows are in memory.

With the way back to the scan's own grid as in the tutorial's inference section: `Invertd` turns each transform around.
"""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import torch
from monai.inferers.utils import sliding_window_inference
from monai.transforms import (
    AsDiscreted,
    Compose,
    EnsureChannelFirstd,
    Invertd,
    LoadImaged,
    Orientationd,
    SaveImaged,
    ScaleIntensityRanged,
    Spacingd,
)

from fl_app.config import Job
from fl_app.model_file import load_model
from fl_app.networks.registry import build_network


def loading(job: Job) -> Compose:
    """The tutorial's chain: a scan on the job's grid, its window of intensities mapped to 0..1."""
    low, high = job.data.window_hu
    return Compose(
        [
            LoadImaged("image"),
            EnsureChannelFirstd("image"),
            Orientationd("image", "RAS"),
            Spacingd("image", job.data.spacing_mm, mode="bilinear"),
            ScaleIntensityRanged("image", low, high, 0.0, 1.0, clip=True),
        ]
    )


def logits(network: torch.nn.Module, job: Job, image: torch.Tensor) -> torch.Tensor:
    """(classes, x, y, z) of an image (1, x, y, z), with sums that span all of it."""
    overlap = job.evaluation.overlap
    found = sliding_window_inference(image[None], job.window, 1, network, overlap=overlap, mode="gaussian")
    return found[0]


def segment_to_file(network: torch.nn.Module, job: Job, scan: Path, out: Path) -> Path:
    """Write the label map on the scan's own grid into a folder, and return its path.

    Args:
        network: as MONAI builds it, in evaluation mode.
        job: says grid, window of intensities, windows and overlap.
        scan: a NIfTI file.
        out: the folder.
    """
    load = loading(job)
    finish = Compose(
        [
            Invertd("pred", load, orig_keys="image", nearest_interp=False, to_tensor=True),
            AsDiscreted("pred", argmax=True),
            SaveImaged("pred", output_dir=out, output_postfix="seg", separate_folder=False, print_log=False),
        ]
    )
    with torch.no_grad():
        item = load({"image": scan})
        finish({**item, "pred": logits(network, job, item["image"])})
    return next(out.glob("*_seg.nii.gz"))


def predict_whole(model: Path, scan: Path, out: Path) -> None:
    """Write ``label.nii`` and ``probabilities.npy``, (classes, x, y, z) float32, into a new folder.

    Args:
        model: a model file of ours; network, grid, windows and overlap are taken from it.
        scan: a NIfTI file.
        out: the folder.
    """
    weights, info = load_model(model)
    job = info.job
    network = build_network(job).eval()
    network.load_state_dict(weights)
    with torch.no_grad():
        image = loading(job)({"image": scan})["image"]
        found = logits(network, job, image).softmax(0).numpy()
    out.mkdir()
    np.save(out / "probabilities.npy", found)
    nibabel.save(nibabel.Nifti1Image(found.argmax(0).astype(np.uint8), np.asarray(image.affine)), out / "label.nii")
