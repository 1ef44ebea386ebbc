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
    EnsureChannelFirst,
    EnsureChannelFirstd,
    Invertd,
    LoadImage,
    LoadImaged,
    Orientation,
    Orientationd,
    SaveImaged,
    ScaleIntensityRange,
    ScaleIntensityRanged,
    Spacing,
    Spacingd,
)

from fl_app.config import Job
from fl_app.model_file import load_model
from fl_app.networks.registry import build_network


def segment_to_file(network: torch.nn.Module, job: Job, scan: Path, out: Path) -> Path:
    """Write the label map on the scan's own grid into a folder, and return its path.

    Args:
        network: as MONAI builds it, in evaluation mode.
        job: says grid, window of intensities, windows and overlap.
        scan: a NIfTI file.
        out: the folder.
    """
    low, high = job.data.window_hu
    load = Compose(
        [
            LoadImaged("image"),
            EnsureChannelFirstd("image"),
            Orientationd("image", "RAS"),
            Spacingd("image", job.data.spacing_mm, mode="bilinear"),
            ScaleIntensityRanged("image", low, high, 0.0, 1.0, clip=True),
        ]
    )
    finish = Compose(
        [
            Invertd("pred", load, orig_keys="image", nearest_interp=False, to_tensor=True),
            AsDiscreted("pred", argmax=True),
            SaveImaged("pred", output_dir=out, output_postfix="seg", separate_folder=False, print_log=False),
        ]
    )
    with torch.no_grad():
        item = load({"image": scan})
        logits = sliding_window_inference(
            item["image"][None], job.window, 1, network, overlap=job.evaluation.overlap, mode="gaussian"
        )
        finish({**item, "pred": logits[0]})
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
    low, high = job.data.window_hu
    load = Compose(
        [
            LoadImage(image_only=True),
            EnsureChannelFirst(),
            Orientation("RAS"),
            Spacing(job.data.spacing_mm, mode="bilinear"),
            ScaleIntensityRange(low, high, 0.0, 1.0, clip=True),
        ]
    )
    with torch.no_grad():
        image = load(scan)
        logits = sliding_window_inference(
            image[None], job.window, 1, network, overlap=job.evaluation.overlap, mode="gaussian"
        )
        found = logits[0].softmax(0).numpy()
    out.mkdir()
    np.save(out / "probabilities.npy", found)
    nibabel.save(nibabel.Nifti1Image(found.argmax(0).astype(np.uint8), np.asarray(image.affine)), out / "label.nii")
