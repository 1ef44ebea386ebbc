import shutil

import nibabel
import numpy as np
import pytest

from tests.volumes import (
    AFFINE,
    IMAGE,
    LABEL,
    MIRROR,
    SHAPE,
    both,
    check,
    kinds,
    make_ct,
    only,
    set_header,
    write_decathlon,
    write_nifti,
)


@pytest.fixture
def site(tmp_path):
    """Three clean cases."""
    return write_decathlon(tmp_path, 3)


# ---- geometry


@pytest.mark.parametrize("spacing", [0, 1])
def test_no_spacing(site, spacing):
    for file in (IMAGE, LABEL):
        set_header(site / file, sform_code=0, qform_code=0, pixdim=[1, spacing, spacing, spacing, 0, 0, 0, 0])
    assert ("error", "no-spacing", IMAGE) in kinds(check(site))


def test_spacing_without_orientation(site):
    """NIfTI then assumes the first axis runs to the left, which these arrays do not."""
    for file in (IMAGE, LABEL):
        set_header(site / file, sform_code=0, qform_code=0)
    assert kinds(check(site)) == [("warning", "no-orientation", IMAGE), ("error", "left-right-flipped", IMAGE)]


@pytest.mark.parametrize("scale", [0.02, 10])
def test_absurd_spacing(site, scale):
    both(site, 1, AFFINE @ np.diag([scale, scale, scale, 1]))
    assert "mm" in only(check(site), "error", "absurd-spacing", IMAGE).problem


@pytest.mark.parametrize("axis", [(0, 0, 0), (np.nan, 0, 5), (np.inf, 0, 0), (4, 0, 0), (1e38, 0, 0)])
def test_bad_affine(site, axis):
    """The slices' axis is nothing, not finite, or the same as another."""
    affine = AFFINE.copy()
    affine[:3, 2] = axis
    set_header(site / IMAGE, srow_x=affine[0], srow_y=affine[1], srow_z=affine[2])
    assert ("error", "bad-affine", IMAGE) in kinds(check(site))


def turned(degrees):
    """The affine with the patient turned about the long axis."""
    angle = np.radians(degrees)
    rotation = np.eye(4)
    rotation[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    return rotation @ AFFINE


def test_gantry_tilt_in_degrees(site):
    tilt = np.eye(4)
    tilt[1, 2] = np.tan(np.radians(12)) * 5 / 4
    both(site, 1, AFFINE @ tilt)
    assert "12.0 degrees" in only(check(site), "warning", "sheared", IMAGE).problem


def test_oblique_in_degrees(site):
    both(site, 1, turned(20))
    assert "20.0 degrees" in only(check(site), "warning", "oblique", IMAGE).problem


def test_slightly_oblique_is_usual(site):
    both(site, 1, turned(4))
    assert check(site) == []


# ---- left and right


def test_a_flipped_affine_is_an_error(site):
    both(site, 1, AFFINE @ MIRROR)
    finding = only(check(site), "error", "left-right-flipped", IMAGE)
    assert "spleen on the patient's right" in finding.problem


def test_the_same_patient_stored_the_other_way_is_fine(site):
    both(site, 1, AFFINE @ MIRROR, reverse=True)
    assert check(site) == []


def test_a_mirrored_array_is_a_warning(site):
    both(site, 1, reverse=True)
    only(check(site), "warning", "organ-on-other-side", IMAGE)


def test_two_cases_are_too_few_to_tell(tmp_path):
    site = write_decathlon(tmp_path, 2)
    both(site, 1, AFFINE @ MIRROR)
    assert check(site) == []


def test_a_quarter_of_the_cases_may_be_odd(tmp_path):
    site = write_decathlon(tmp_path, 10)
    for number in (2, 5):
        both(site, number, AFFINE @ MIRROR)
    assert kinds(check(site)) == [
        ("error", "left-right-flipped", f"imagesTr/case_{number}.nii.gz") for number in (2, 5)
    ]


def test_no_majority_no_finding(tmp_path):
    site = write_decathlon(tmp_path, 6)
    for number in (0, 2, 4):
        both(site, number, AFFINE @ MIRROR)
    assert check(site) == []


def test_axes_in_another_order_are_no_flip(site):
    for file in (IMAGE, LABEL):
        old = nibabel.load(site / file)
        voxels = np.asanyarray(old.dataobj).transpose(2, 1, 0)
        write_nifti(site / file, voxels, old.affine[:, [2, 1, 0, 3]])
    assert check(site) == []


@pytest.mark.parametrize("smaller", [0.0, 0.3, 0.6])
def test_bilateral_organs_give_no_alarm(tmp_path, smaller):
    """Two kidneys, the right one smaller or larger by chance, in flipped and unflipped cases."""
    site = write_decathlon(tmp_path, 6)
    for number in range(6):
        image, left = make_ct(number)
        right = left[::-1].copy()
        right[:, :, : int(smaller * (number % 3) * SHAPE[2])] = 0
        write_nifti(site / f"labelsTr/case_{number}.nii.gz", left | right)
        write_nifti(site / f"imagesTr/case_{number}.nii.gz", np.maximum(image, image[::-1]))
    both(site, 3, AFFINE @ MIRROR)
    assert [kind for kind in kinds(check(site)) if kind[2] != "imagesTr/case_3.nii.gz"] == []


def test_a_body_beside_the_middle_of_the_scan_is_no_flip(tmp_path):
    """Only the place within the body counts, not the place within the scanner."""
    site = write_decathlon(tmp_path, 4)
    shifted = AFFINE.copy()
    shifted[0, 3] += 150
    both(site, 1, shifted)
    assert check(site) == []


# ---- duplicates


def test_the_same_image_under_two_names(site):
    shutil.copy(site / IMAGE, site / "imagesTr/case_2.nii.gz")
    shutil.copy(site / LABEL, site / "labelsTr/case_2.nii.gz")
    finding = only(check(site), "error", "duplicate-image", "imagesTr/case_2.nii.gz")
    assert IMAGE in finding.problem and "labels differ" not in finding.problem


def test_a_duplicate_is_seen_through_another_way_to_store_it(site):
    write_nifti(site / "imagesTr/case_2.nii.gz", make_ct(1)[0].astype(">f4"))
    label = make_ct(1)[1].astype(np.int32)
    label[10, 10, 6] = 1
    write_nifti(site / "labelsTr/case_2.nii.gz", label)
    finding = only(check(site), "error", "duplicate-image", "imagesTr/case_2.nii.gz")
    assert "labels differ" in finding.problem
