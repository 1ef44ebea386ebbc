from pathlib import Path

import nibabel
import numpy as np
import pytest

from fl_app.data.cases import find_cases
from fl_app.data.checks import check_cases, format_findings
from fl_app.data.findings import Finding, compact_values
from tests.volumes import (
    AFFINE,
    IMAGE,
    LABEL,
    MIRROR,
    SHAPE,
    SPLEEN,
    both,
    change,
    check,
    kinds,
    make_ct,
    only,
    set_header,
    write_case,
    write_decathlon,
)

REAL_CT = Path(__file__).parents[2] / "shared" / "data" / "real_ct"


@pytest.fixture
def site(tmp_path):
    """Three clean cases."""
    return write_decathlon(tmp_path, 3)


def image_values(function):
    """The voxels of the damaged case's image, changed."""
    return function(make_ct(1)[0])


# ---- nothing wrong


def test_a_clean_data_set_gives_no_finding(site):
    assert check(site) == []


@pytest.mark.parametrize("kind", [nibabel.Nifti1Image, nibabel.Nifti2Image])
@pytest.mark.parametrize("dtype", ["<i2", ">i2", "<i4", "<f4", "<f8"])
def test_other_ways_to_store_the_same_are_clean(site, kind, dtype):
    change(site, IMAGE, make_ct(1)[0].astype(dtype), kind=kind)
    change(site, LABEL, make_ct(1)[1].astype(dtype), kind=kind)
    assert check(site) == []


def test_uncompressed_files_are_clean(tmp_path):
    for seed in range(3):
        write_case(tmp_path, f"c{seed}", seed, ending=".nii")
    assert check(tmp_path) == []


def test_a_rescale_intercept_in_the_header_is_applied(site):
    change(site, IMAGE, (make_ct(1)[0] + 1200).astype(np.uint16))
    assert [finding.code for finding in check(site)] == ["not-hounsfield"]
    set_header(site / IMAGE, scl_slope=1, scl_inter=-1200)
    assert check(site) == []


def test_a_fourth_dimension_of_one_is_accepted(site):
    change(site, IMAGE, make_ct(1)[0][..., None])
    assert check(site) == []


def test_identity_affine_with_a_valid_code_is_one_millimetre(site):
    for number in range(3):
        both(site, number, np.eye(4))
    assert check(site) == []


def test_progress_is_told(site):
    told = []
    check_cases(find_cases(site), SPLEEN, lambda done, count: told.append((done, count)))
    assert told == [(1, 3), (2, 3), (3, 3)]


def test_each_file_is_read_once(site, monkeypatch):
    read = []
    original = Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda path: read.append(path) or original(path))
    check(site)
    assert len(read) == len(set(read)) == 6


@pytest.mark.skipif(not REAL_CT.exists(), reason="the real CT is not beside this checkout")
def test_a_real_ct_with_117_organs():
    (finding,) = check(REAL_CT)
    assert (finding.severity, finding.code, finding.file) == ("warning", "undeclared-labels", "organs.nii.gz")
    assert "count as background" in finding.problem
    assert "2-11, 13-14" in finding.problem


# ---- image and label do not fit


def test_missing_label(site):
    (site / LABEL).unlink()
    only(check(site), "error", "missing-label", IMAGE)


def test_label_without_image(site):
    (site / "dataset.json").unlink()
    (site / IMAGE).unlink()
    only(check(site), "warning", "label-without-image", LABEL)


def test_what_finding_the_files_showed_is_in_the_list(site):
    (site / IMAGE).unlink()
    only(check(site), "error", "missing-image", IMAGE)


def test_no_case_at_all(tmp_path):
    site = write_decathlon(tmp_path, 1)
    (site / "imagesTr/case_0.nii.gz").unlink()
    assert [code for _, code, _ in kinds(check(site))] == ["missing-image", "no-cases"]


def test_different_shape(site):
    change(site, LABEL, make_ct(1)[1][:-1])
    finding = only(check(site), "error", "shape-mismatch", LABEL)
    assert "23 x 20 x 12" in finding.problem and "24 x 20 x 12" in finding.problem


@pytest.mark.parametrize(
    ("affine", "says"),
    [
        (AFFINE + np.eye(4)[:, [3, 3, 3, 0]] * [0, 0, 0, 7], "7 mm"),
        (AFFINE @ np.diag([1.01, 1, 1, 1]), "spacing 4 x 4 x 5 mm against 4.04 x 4 x 5 mm"),
        (AFFINE @ MIRROR, "orientation RAS against LAS"),
    ],
)
def test_different_affine_says_by_how_much(site, affine, says):
    change(site, LABEL, affine=affine)
    assert says in only(check(site), "error", "affine-mismatch", LABEL).problem


def test_rounding_of_the_affine_is_no_difference(site):
    change(site, LABEL, affine=AFFINE + 0.0009)
    assert check(site) == []


# ---- label values


def test_undeclared_values_are_named_compactly(site):
    label = make_ct(1)[1].astype(np.int16)
    label[:2, 0, 0], label[2, 0, 0] = (2, 3), 300
    change(site, LABEL, label)
    finding = only(check(site), "warning", "undeclared-labels", LABEL)
    assert "2-3, 300 " in finding.problem and "background" in finding.problem


@pytest.mark.parametrize("value", [0.5, np.nan, np.inf, 1e20])
def test_non_integer_labels(site, value):
    label = make_ct(1)[1].astype(np.float32)
    label[0, 0, 0] = value
    change(site, LABEL, label)
    only(check(site), "error", "non-integer-labels", LABEL)


def test_negative_labels(site):
    label = make_ct(1)[1].astype(np.int16)
    label[0, 0, 0] = -1
    change(site, LABEL, label)
    only(check(site), "error", "negative-labels", LABEL)


@pytest.mark.parametrize("value", [70_000, 2**31 - 1])
def test_large_label_values(site, value):
    label = make_ct(1)[1].astype(np.int32)
    label[0, 0, 0] = value
    change(site, LABEL, label)
    assert str(value) in only(check(site), "warning", "undeclared-labels", LABEL).problem


def test_a_label_absent_in_one_case(site):
    change(site, LABEL, np.zeros(SHAPE, np.uint8))
    assert "spleen (value 1)" in only(check(site), "warning", "label-absent", LABEL).problem


def test_a_label_absent_everywhere(site):
    findings = check(site, {"background": 0, "spleen": 1, "liver": 6})
    assert "liver (value 6)" in only(findings, "error", "label-absent-everywhere", ".").problem


# ---- intensities


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_not_finite(site, value):
    image = make_ct(1)[0].astype(np.float32)
    image[0, 0, :3] = value
    change(site, IMAGE, image)
    assert "3 voxels" in only(check(site), "error", "not-finite", IMAGE).problem


@pytest.mark.parametrize(
    ("function", "says"),
    [
        (lambda hu: ((hu + 1050) / 1200).clip(0, 1).astype(np.float32), "scaled to 0..1"),
        (lambda hu: ((hu + 1050) / 5).clip(0, 255).astype(np.uint8), "0..255"),
        (lambda hu: (hu + 1050).clip(0).astype(np.int16), "rescale intercept"),
        (lambda hu: (hu + 6000).astype(np.int16), "no negative values"),
        (lambda hu: (hu / 500).astype(np.float32), "too narrow"),
        (lambda hu: np.zeros_like(hu), "all voxels are equal"),
    ],
)
def test_not_hounsfield(site, function, says):
    change(site, IMAGE, image_values(function))
    assert says in only(check(site), "error", "not-hounsfield", IMAGE).problem


def test_no_air(site):
    change(site, IMAGE, image_values(lambda hu: hu.clip(-150, None) + (hu > 50) * np.int16(200)))
    only(check(site), "warning", "no-air", IMAGE)


@pytest.mark.parametrize("value", [32_500, -20_000])
def test_extreme_values(site, value):
    image = make_ct(1)[0]
    image[0, 0, 0] = value
    change(site, IMAGE, image)
    assert str(value) in only(check(site), "warning", "extreme-values", IMAGE).problem


# ---- all of it in one text


def test_all_problems_come_in_one_list(tmp_path):
    site = write_decathlon(tmp_path, 5)
    (site / "labelsTr/case_0.nii.gz").unlink()
    change(site, IMAGE, np.zeros(SHAPE, np.int16))
    (site / "imagesTr/case_2.nii.gz").write_bytes(b"")
    change(site, "labelsTr/case_3.nii.gz", make_ct(3)[1] * 2)
    findings = check(site)
    assert {code for _, code, _ in kinds(findings)} == {
        "missing-label", "not-hounsfield", "unreadable", "undeclared-labels", "label-absent",
    }  # fmt: skip
    text = format_findings(findings)
    assert text.endswith("3 errors, 2 warnings")
    assert text.index("[unreadable]") < text.index("warning  labelsTr/case_3.nii.gz [undeclared-labels]")


def test_findings_shared_by_many_files_are_told_once():
    findings = [Finding("warning", "odd", f"{number}.nii", "It is odd.", "Look at it.") for number in range(40)]
    findings.append(Finding("error", "bad", ".", "It is bad. " * 30, "Mend it."))
    text = format_findings(findings)
    assert text.startswith("error    the whole folder [bad]")
    assert "0.nii, 1.nii, 2.nii and 37 more files [odd]" in text
    assert (text.count("It is odd."), text.count("remedy:")) == (1, 2)
    assert max(len(line) for line in text.splitlines()) <= 100
    assert text.endswith("1 error, 40 warnings")


def test_nothing_to_report():
    assert format_findings([]) == "0 errors, 0 warnings"


@pytest.mark.parametrize(
    ("values", "text"), [([], ""), ([3], "3"), ([4, 2, 3, 9, 2], "2-4, 9"), (range(0, 100, 2), None)]
)
def test_compact_values(values, text):
    shown = compact_values(values)
    assert shown == text if text is not None else shown.endswith("22, ...")
