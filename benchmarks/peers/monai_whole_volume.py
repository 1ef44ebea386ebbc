"""MONAI's spleen tutorial on one scan: the volume, its resampled copy and the sums of all windows are in memory."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import torch
from monai.inferers.utils import sliding_window_inference
from monai.transforms import Compose, EnsureChannelFirst, LoadImage, Orientation, ScaleIntensityRange, Spacing

from fl_app.model_file import load_model
from fl_app.networks.registry import build_network


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
