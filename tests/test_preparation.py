"""Preparation gives what MONAI's chain of transforms gives, which is its plain reference."""

import math

import nibabel
import numpy as np
import pytest
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

from fl_app.config import DataSettings
from fl_app.data.cases import Case
from fl_app.data.preparation import load_label, prepare_cases
from fl_app.errors import DataError
from tests.volumes import AFFINE, make_ct, write_nifti

BOTH = ("image", "label")


def rotation(axis, degrees):
    turn = np.eye(4)
    one, other = {"x": (1, 2), "y": (0, 2), "z": (0, 1)}[axis]
    angle = math.radians(degrees)
    turn[one, one] = turn[other, other] = math.cos(angle)
    turn[one, other], turn[other, one] = -math.sin(angle), math.sin(angle)
    return turn


def shear(degrees):
    """A gantry's tilt: each slice lies a little further along y."""
    tilted = np.eye(4)
    tilted[1, 2] = math.tan(math.radians(degrees))
    return tilted


def monai_chain(case, settings):
    lower, upper = settings.window_hu
    chain = Compose(
        [
            LoadImaged(BOTH, reader="NibabelReader"),
            EnsureChannelFirstd(BOTH),
            Orientationd(BOTH, "RAS", labels=None),
            Spacingd(BOTH, pixdim=settings.spacing_mm, mode=("bilinear", "nearest")),
            CropForegroundd(BOTH, "image", select_fn=lambda image: image > -700, margin=2, allow_smaller=True),
            ScaleIntensityRanged("image", lower, upper, b_min=0.0, b_max=1.0, clip=True),
        ]
    )
    made = chain({"image": str(case.image), "label": str(case.label)})
    return made["image"].as_tensor(), made["label"].as_tensor(), made["image"].affine


def stored_case(folder, affine=AFFINE, codes="RAS", kind=np.int16, seed=0):
    image, label = make_ct(seed)
    # not a voxel of it is like its neighbour, and air is left on all sides
    image = np.pad(image + np.random.default_rng(seed).integers(-40, 40, image.shape), 2, constant_values=-1000)
    turn = nibabel.orientations.ornt_transform(nibabel.io_orientation(affine), nibabel.orientations.axcodes2ornt(codes))
    paths = []
    for name, voxels in (("image", image.astype(kind)), ("label", np.pad(label, 2))):
        turned = nibabel.Nifti1Image(voxels, affine).as_reoriented(turn)
        paths.append(write_nifti(folder / f"{name}.nii.gz", np.asarray(turned.dataobj), turned.affine))
    return Case("case", *paths)


@pytest.mark.parametrize(
    # halving a voxel's size is left out: of labels halfway between two voxels MONAI's rounding errors choose one
    "spacing",
    [(4.0, 4.0, 5.0), (1.91, 2.13, 2.2), (7.0, 6.5, 9.0)],
)
@pytest.mark.parametrize(
    ("affine", "codes", "kind"),
    [
        (AFFINE, "RAS", np.int16),
        (AFFINE, "LPS", np.int16),
        (AFFINE, "PIR", np.float32),
        (AFFINE, "ASL", np.float64),
        (AFFINE + np.diag([-0.31, -0.7, 0.123, 0]), "LAS", np.int32),
        (rotation("z", 4) @ rotation("x", -9) @ AFFINE, "RAS", np.int16),
        (rotation("y", 30) @ AFFINE, "LPI", np.int16),
        (shear(12) @ AFFINE, "RAS", np.int16),
    ],
)
def test_voxels_are_monais_within_1_hu(tmp_path, affine, codes, kind, spacing):
    settings = DataSettings(spacing_mm=spacing, window_hu=(-1000.0, 1000.0))
    case = stored_case(tmp_path, affine, codes, kind)
    image, label, grid = monai_chain(case, settings)
    (made,) = prepare_cases([case], settings, None)
    assert made.image.shape == image.shape
    # the window is 2000 HU wide, and float16 keeps half of one
    assert float((made.image.float() - image).abs().max()) * 2000 < 1
    assert int((made.label != label).sum()) <= 0.001 * label.numel()
    torch.testing.assert_close(made.affine, grid, atol=1e-4, rtol=0)


def test_a_volume_without_a_body_is_kept_whole(tmp_path):
    image, label = make_ct()
    case = Case(
        "case",
        write_nifti(tmp_path / "image.nii.gz", np.full_like(image, -1000)),
        write_nifti(tmp_path / "label.nii.gz", label),
    )
    (made,) = prepare_cases([case], DataSettings(spacing_mm=(4.0, 4.0, 5.0)), None)
    assert made.image.shape == (1, *image.shape) and len(made.organ_centres) == label.sum()


def test_labels_that_rescaling_left_beside_whole_numbers_count(tmp_path):
    _, label = make_ct()
    path = write_nifti(tmp_path / "label.nii.gz", label.astype(np.float32) * np.float32(0.99999))
    assert int(load_label(path, DataSettings()).sum()) == int(label.sum())


def test_a_file_that_was_damaged_after_the_check_is_an_error_that_names_it(tmp_path):
    case = stored_case(tmp_path)
    case.image.write_bytes(case.image.read_bytes()[:2000])
    with pytest.raises(DataError, match=r"image\.nii\.gz: It cannot be read: it is cut short"):
        prepare_cases([case], DataSettings(), None)
