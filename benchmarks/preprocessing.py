"""Preparing one CT of 512 x 512 x 90 voxels, from the two files to tensors that patches are drawn from.

Against MONAI's transforms, one thread, processor time, repetitions taken in turns:

- the same steps in MONAI: LoadImaged, EnsureChannelFirstd, Orientationd, Spacingd, CropForegroundd,
  ScaleIntensityRanged; its voxels are compared with ours;
- MONAI's spleen tutorial, in its order (it crops before it resamples) and with its window of HU.

MONAI's time is without the search for voxels to centre patches on, which is part of ours.

    .venv/bin/python -m benchmarks.preprocessing [--json FILE]
"""

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import torch
from monai.transforms import (
    Compose,
    CropForegroundd,
    EnsureChannelFirstd,
    LoadImaged,
    Orientationd,
    ScaleIntensityRanged,
    Spacingd,
)
from numpy.typing import NDArray
from scipy import ndimage

from benchmarks.timing import in_turns, show
from fl_app.config import DataSettings
from fl_app.data.cases import Case
from fl_app.data.phantom.case import make_case
from fl_app.data.phantom.sites import character_of
from fl_app.data.preparation import prepare_cases

BOTH = ("image", "label")
SHAPE, SPACING_MM = (512, 512, 90), (0.79, 0.79, 5.0)  # as most of the Decathlon's spleen cases


def enlarged(
    image: NDArray[np.int16], label: NDArray[np.uint8], shape: tuple[int, ...]
) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """A volume between its voxels, and its label at the nearest one, on another matrix with the same corners."""
    factors = [size / held for size, held in zip(shape, image.shape, strict=True)]
    return ndimage.zoom(image.astype(np.float32), factors, order=1), ndimage.zoom(label, factors, order=0)


def write_case(folder: Path) -> Case:
    """A phantom enlarged to 512 x 512 x 90 voxels, with noise of 8 HU, compressed as nibabel does."""
    image, label, _ = make_case(character_of(0), (0, 0, 0))
    smooth, large_label = enlarged(image, label, SHAPE)
    noise = np.random.default_rng(0).normal(0, 8, SHAPE)
    large = np.clip(smooth + noise, -1024, 3071).astype(np.int16)
    affine = np.diag([*SPACING_MM, 1.0])
    for name, voxels in (("image", large), ("label", large_label)):
        nibabel.save(nibabel.Nifti1Image(voxels, affine), folder / f"{name}.nii.gz")
    return Case("case", folder / "image.nii.gz", folder / "label.nii.gz")


def same_steps(settings: DataSettings) -> Compose:
    """Our steps in MONAI's transforms."""
    lower, upper = settings.window_hu
    return Compose(
        [
            LoadImaged(BOTH),
            EnsureChannelFirstd(BOTH),
            Orientationd(BOTH, "RAS", labels=None),
            Spacingd(BOTH, pixdim=settings.spacing_mm, mode=("bilinear", "nearest")),
            CropForegroundd(BOTH, "image", select_fn=lambda image: image > -700, margin=2, allow_smaller=True),
            ScaleIntensityRanged("image", lower, upper, b_min=0.0, b_max=1.0, clip=True),
        ]
    )


def tutorial() -> Compose:
    """The deterministic transforms of MONAI's spleen_segmentation_3d tutorial."""
    return Compose(
        [
            LoadImaged(BOTH),
            EnsureChannelFirstd(BOTH),
            ScaleIntensityRanged("image", a_min=-57, a_max=164, b_min=0.0, b_max=1.0, clip=True),
            CropForegroundd(BOTH, "image", allow_smaller=True),
            Orientationd(BOTH, "RAS", labels=None),
            Spacingd(BOTH, pixdim=(1.5, 1.5, 2.0), mode=("bilinear", "nearest")),
        ]
    )


def main(repeats: int, report: Path | None) -> None:
    """Prepare the case in all three ways and print."""
    torch.set_num_threads(1)
    settings = DataSettings()
    with tempfile.TemporaryDirectory() as folder:
        case = write_case(Path(folder))
        files = {"image": str(case.image), "label": str(case.label)}
        chain, from_tutorial = same_steps(settings), tutorial()
        ways: dict[str, Callable[[], Any]] = {
            "fedspleen": lambda: prepare_cases([case], settings, None)[0],
            "MONAI, the same steps": lambda: chain(files),
            "MONAI's tutorial": lambda: from_tutorial(files),
        }
        made, wanted = ways["fedspleen"](), ways["MONAI, the same steps"]()
        times = in_turns(ways, repeats)
    lower, upper = settings.window_hu
    off = (made.image.float() - wanted["image"].as_tensor()).abs() * (upper - lower)
    facts = {
        "largest difference, HU": float(off.max()),
        "share of label voxels that differ": float((made.label != wanted["label"].as_tensor()).float().mean()),
    }
    show(times, "fedspleen", facts, report)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    main(options.repeats, options.json)
