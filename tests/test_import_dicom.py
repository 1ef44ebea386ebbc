"""`fedspleen import-dicom`: from a tree of series with segmentations to cases that training finds."""

import csv
import shutil

import nibabel
import numpy as np
import pydicom
import pytest

from fl_app.cli.dicom import import_dicom
from fl_app.data.cases import find_cases
from fl_app.data.checks import check_cases
from fl_app.data.dicom.conversion import REGISTER
from fl_app.data.dicom.series import LPS_TO_RAS, open_series
from fl_app.errors import DataError, UsageError
from tests.dicom import PATIENT, make_anatomy, write_rtstruct, write_seg, write_series
from tests.federation import fedspleen
from tests.test_dicom import ORIENTATIONS

HU, LABELS = make_anatomy()
BOTH = ["spleen=1,liver=2"]


def run(source, out, labels=None, config=None):
    import_dicom(source, out, labels, config)
    return find_cases(out).cases


def outlines(series_folder, boxes):
    """For each box (low, high) in voxels, a rectangle around its voxel centres in each slice, mm in LPS."""
    to_mm = LPS_TO_RAS @ open_series(series_folder).affine
    loops = []
    for low, high in boxes:
        for place in range(low[2], high[2]):
            corners = [(x, y, place, 1) for x, y in (
                (low[0] - 0.5, low[1] - 0.5), (high[0] - 0.5, low[1] - 0.5),
                (high[0] - 0.5, high[1] - 0.5), (low[0] - 0.5, high[1] - 0.5),
            )]  # fmt: skip
            loops.append((to_mm @ np.array(corners).T)[:3].T)
    return loops


def box(low, high):
    mask = np.zeros(HU.shape, bool)
    mask[tuple(slice(*ends) for ends in zip(low, high, strict=True))] = True
    return mask


def label_of(case):
    return np.asarray(nibabel.load(case.label).dataobj)


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_a_series_with_a_seg_becomes_a_case_in_its_own_geometry(tmp_path, orientation):
    folder = write_series(tmp_path / "in" / "Doe" / "ct", orientation=orientation)
    write_seg(tmp_path / "in" / "Doe" / "seg" / "s.dcm", folder, LABELS, ("spleen", "liver"))
    (case,) = run(tmp_path / "in", tmp_path / "out", BOTH)
    image = nibabel.load(case.image)
    assert image.get_data_dtype() == np.int16 and np.array_equal(image.dataobj, HU)
    assert np.array_equal(label_of(case), LABELS)
    assert np.allclose(image.affine, open_series(folder).affine, atol=1e-4)
    assert (image.header["sform_code"], image.header["qform_code"]) == (1, 1)
    assert not [
        f for f in check_cases(find_cases(tmp_path / "out"), {"spleen": 1, "liver": 2}) if f.severity == "error"
    ]


def test_contours_become_voxels_by_the_even_odd_rule(tmp_path):
    folder = write_series(tmp_path / "in" / "ct", orientation=(1, 0, 0, 0, -1, 0))
    loops = outlines(folder, [((5, 6, 3), (20, 18, 12)), ((9, 10, 5), (14, 15, 8)), ((30, 20, 3), (33, 22, 4))])
    write_rtstruct(tmp_path / "in" / "rs.dcm", folder, {"Left_Spleen": loops, "BODY": loops[:1]})
    (case,) = run(tmp_path / "in", tmp_path / "out", ["left spleen=7"])
    expected = (box((5, 6, 3), (20, 18, 12)) ^ box((9, 10, 5), (14, 15, 8))) | box((30, 20, 3), (33, 22, 4))
    assert np.array_equal(label_of(case), expected * 7)


def test_a_round_contour_has_the_right_area(tmp_path):
    folder = write_series(tmp_path / "in" / "ct")
    to_mm = LPS_TO_RAS @ open_series(folder).affine
    angle = np.linspace(0, 2 * np.pi, 60, endpoint=False)
    centre, radius = (to_mm @ [20, 16, 9, 1])[:3], 14.0
    loop = centre + radius * np.column_stack([np.cos(angle), np.sin(angle), 0 * angle])
    write_rtstruct(tmp_path / "in" / "rs.dcm", folder, {"spleen": [loop]})
    (case,) = run(tmp_path / "in", tmp_path / "out")
    x, y = np.meshgrid(np.arange(40), np.arange(32), indexing="ij")
    inside = ((x - 20) * 2) ** 2 + ((y - 16) * 2.5) ** 2 < radius**2
    assert abs(int(label_of(case)[:, :, 9].sum()) - int(inside.sum())) <= 2
    assert label_of(case).sum() == label_of(case)[:, :, 9].sum()


def test_nothing_but_geometry_and_voxels_is_kept(tmp_path):
    folder = write_series(tmp_path / "in" / "Doe^Jane" / "ct")
    write_seg(tmp_path / "in" / "seg.dcm", folder, LABELS, ("spleen", "liver"))
    uid = pydicom.dcmread(folder / "000.dcm").SeriesInstanceUID
    run(tmp_path / "in", tmp_path / "out", BOTH)
    files = {path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*.*")}
    assert files == {"images/case-001.nii.gz", "labels/case-001.nii.gz", REGISTER}
    for path in (tmp_path / "out").rglob("*.nii.gz"):
        image = nibabel.load(path)
        assert not image.header.extensions and bytes(image.header["descrip"]).strip(b"\0") == b""
        assert PATIENT.encode() not in image.header.binaryblock and uid.encode() not in image.header.binaryblock
    (row,) = csv.DictReader((tmp_path / "out" / REGISTER).open())
    assert row == {"case": "case-001", "series_instance_uid": uid, "folder": "Doe^Jane/ct"}
    assert "identifying" in REGISTER.lower()


def test_cases_keep_their_names_when_more_are_imported(tmp_path, capsys):
    second = write_series(tmp_path / "in" / "b")
    write_seg(tmp_path / "in" / "b.dcm", second, LABELS, ("spleen", "liver"))
    run(tmp_path / "in", tmp_path / "out")
    before = (tmp_path / "out" / "labels" / "case-001.nii.gz").read_bytes()
    first = write_series(tmp_path / "in" / "a", hu=HU + 10)
    write_seg(tmp_path / "in" / "a.dcm", first, LABELS, ("spleen", "liver"))
    cases = run(tmp_path / "in", tmp_path / "out")
    assert [case.name for case in cases] == ["case-001", "case-002"]
    assert (tmp_path / "out" / "labels" / "case-001.nii.gz").read_bytes() == before
    printed = capsys.readouterr().out
    assert "1 converted, 1 converted before, 0 skipped, 0 refused" in printed
    assert "several cases of one patient (1 such)" in printed


def test_the_report_says_what_was_skipped_and_refused_and_why(tmp_path, capsys):
    source = tmp_path / "in"
    good = write_series(source / "good")
    write_seg(source / "good.dcm", good, LABELS, ("spleen", "liver"))
    write_series(source / "no-labels")
    write_series(source / "scout", HU[:, :, :2], ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    for name, spoil in {
        "gap": lambda folder: (folder / "007.dcm").unlink(),
        "orphan": shutil.rmtree,
    }.items():
        folder = write_series(source / name)
        write_seg(source / f"{name}.dcm", folder, LABELS, ("spleen", "liver"))
        spoil(folder)
    for name, organs in {"foreign": ("Milz", "Leber"), "twice": ("spleen", "spleen")}.items():
        folder = write_series(source / name)
        write_seg(source / f"{name}.dcm", folder, LABELS, organs)
    write_seg(source / "twice-2.dcm", source / "twice", LABELS, ("spleen", "liver"))
    tilted = write_series(source / "tilted")
    write_rtstruct(source / "tilted.dcm", tilted, {"spleen": outlines(tilted, [((5, 6, 3), (9, 9, 6))])}, kind="POINT")
    write_series(source / "mr", Modality="MR")
    shutil.copy(good / "000.dcm", source / "cut.dcm")
    (source / "cut.dcm").write_bytes((source / "cut.dcm").read_bytes()[:140])
    cases = run(source, tmp_path / "out")
    assert [case.name for case in cases] == ["case-001"]
    printed = capsys.readouterr().out
    for line in (
        "case-001: spleen",
        "skipped: no-labels: no SEG or RTSTRUCT refers to it",
        "skipped: scout: a localiser",
        "skipped: mr: no SEG or RTSTRUCT refers to it",
        "refused: gap: 1 of 20 slices are missing",
        "refused: orphan.dcm: the images that it refers to are not here",
        "refused: foreign: none of spleen is drawn, but Leber, Milz; name one with --labels NAME=VALUE",
        "refused: twice: spleen is drawn twice",
        "refused: tilted: spleen is drawn as POINT; only closed planar contours",
        "refused: cut.dcm: damaged",
        "1 converted, 0 converted before, 3 skipped, 6 refused",
    ):
        assert line in printed, (line, printed)
    assert printed.count("refused: gap") == 1


@pytest.mark.parametrize(
    ("shift", "words"),
    [((0, 0, 2.2), "contours where the series has no slice"), ((0, 0, 400), "has no slice")],
)
def test_contours_beside_the_slices_are_refused(tmp_path, capsys, shift, words):
    folder = write_series(tmp_path / "in" / "ct")
    loops = [loop + shift for loop in outlines(folder, [((5, 6, 3), (9, 9, 6))])]
    write_rtstruct(tmp_path / "in" / "rs.dcm", folder, {"spleen": loops})
    with pytest.raises(DataError, match="no CT series with a usable segmentation"):
        import_dicom(tmp_path / "in", tmp_path / "out")
    assert words in capsys.readouterr().out


def test_a_segmentation_on_another_grid_is_refused(tmp_path, capsys):
    folder = write_series(tmp_path / "in" / "ct")
    write_seg(tmp_path / "in" / "seg.dcm", folder, LABELS, ("spleen", "liver"))
    dataset = pydicom.dcmread(tmp_path / "in" / "seg.dcm")
    for frame in dataset.PerFrameFunctionalGroupsSequence:
        frame.PlanePositionSequence[0].ImagePositionPatient[0] += 0.7
    dataset.save_as(tmp_path / "in" / "seg.dcm")
    with pytest.raises(DataError):
        import_dicom(tmp_path / "in", tmp_path / "out")
    assert "spleen lies on another grid than the series" in capsys.readouterr().out


def test_the_command_says_what_it_did(tmp_path):
    folder = write_series(tmp_path / "in" / "Doe" / "ct")
    write_seg(tmp_path / "in" / "Doe" / "seg" / "s.dcm", folder, LABELS, ("spleen", "liver"))
    done = fedspleen("import-dicom", tmp_path / "in", "--out", tmp_path / "out", "--labels", "spleen=1,liver=2")
    assert done.returncode == 0, done.stderr
    assert "1 converted, 0 converted before, 0 skipped, 0 refused" in done.stdout
    assert len(find_cases(tmp_path / "out").cases) == 1


def test_wrong_arguments_end_in_one_sentence(tmp_path):
    write_series(tmp_path / "in" / "ct")
    for labels in (["spleen"], ["spleen=0"], ["=1"], ["spleen=x"]):
        with pytest.raises(UsageError, match="NAME=VALUE such as spleen=1"):
            import_dicom(tmp_path / "in", tmp_path / "out", labels)
    with pytest.raises(UsageError, match="give one of the two"):
        import_dicom(tmp_path / "in", tmp_path / "out", BOTH, tmp_path / "job.yaml")
    with pytest.raises(DataError, match="does not exist"):
        import_dicom(tmp_path / "nowhere", tmp_path / "out")
    with pytest.raises(DataError, match="It holds DICOM files: convert them once with `fedspleen import-dicom`"):
        find_cases(tmp_path / "in")
