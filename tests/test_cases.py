import os
from pathlib import Path

import pytest

from fl_app.data.cases import Case, find_cases, find_sites
from fl_app.errors import DataError
from tests.volumes import describe, touch, write_decathlon


def found(folder):
    """{name: (image, label)} relative to the folder."""
    return {
        case.name: (
            case.image.relative_to(folder).as_posix(),
            case.label and case.label.relative_to(folder).as_posix(),
        )
        for case in find_cases(folder).cases
    }


def codes(folder):
    return [(finding.severity, finding.code, finding.file) for finding in find_cases(folder).problems]


PAIR = {"image": "./imagesTr/a.nii.gz", "label": "./labelsTr/a.nii.gz"}


# ---- Decathlon


def test_decathlon(tmp_path):
    dataset = find_cases(write_decathlon(tmp_path, 2))
    assert dataset.layout == "Medical Segmentation Decathlon"
    assert dataset.cases[0] == Case("case_0", tmp_path / "imagesTr/case_0.nii.gz", tmp_path / "labelsTr/case_0.nii.gz")
    assert (len(dataset.cases), dataset.problems) == (2, ())


def test_decathlon_ignores_test_images_and_hidden_files(tmp_path):
    touch(write_decathlon(tmp_path, 2), "imagesTs/t.nii.gz", "imagesTr/._case_0.nii.gz", "labelsTr/._case_0.nii.gz")
    assert (list(found(tmp_path)), codes(tmp_path)) == (["case_0", "case_1"], [])
    (tmp_path / "dataset.json").unlink()
    assert (list(found(tmp_path)), codes(tmp_path)) == (["case_0", "case_1"], [])


def test_decathlon_entry_of_a_hidden_file_is_ignored(tmp_path):
    touch(tmp_path, "imagesTr/a.nii.gz", "labelsTr/a.nii.gz", "imagesTr/._a.nii.gz")
    describe(tmp_path, training=[PAIR, {"image": "imagesTr/._a.nii.gz", "label": "labelsTr/._a.nii.gz"}])
    assert list(found(tmp_path)) == ["a"]


def test_decathlon_without_json_keeps_numbers_that_are_no_channels(tmp_path):
    touch(tmp_path, *[f"{part}/amos_000{n}.nii.gz" for part in ("imagesTr", "labelsTr") for n in (1, 2)])
    assert list(found(tmp_path)) == ["amos_0001", "amos_0002"]


def test_names_do_not_depend_on_dataset_json(tmp_path):
    with_json = list(found(write_decathlon(tmp_path)))
    (tmp_path / "dataset.json").unlink()
    assert list(found(tmp_path)) == with_json


def test_listed_files_that_are_missing(tmp_path):
    touch(
        describe(tmp_path, training=[PAIR, {"image": "imagesTr/b.nii", "label": "labelsTr/b.nii"}]), "imagesTr/a.nii.gz"
    )
    assert found(tmp_path) == {"a": ("imagesTr/a.nii.gz", None)}
    assert codes(tmp_path) == [("error", "missing-image", "imagesTr/b.nii")]


def test_images_that_are_not_listed_are_named(tmp_path):
    touch(write_decathlon(tmp_path, 2), "imagesTr/new.nii.gz")
    (problem,) = find_cases(tmp_path).problems
    assert (problem.severity, problem.code) == ("warning", "unlisted-image")
    assert "new.nii.gz" in problem.problem


def test_an_image_listed_twice(tmp_path):
    touch(describe(tmp_path, training=[PAIR, PAIR]), "imagesTr/a.nii.gz", "labelsTr/a.nii.gz")
    assert codes(tmp_path) == [("error", "same-name", "imagesTr/a.nii.gz")]


def test_symbolic_links_to_a_storage_are_fine(tmp_path):
    touch(tmp_path / "storage", "a.nii.gz", "l.nii.gz")
    for part, file in (("imagesTr", "a.nii.gz"), ("labelsTr", "l.nii.gz")):
        (tmp_path / "site" / part).mkdir(parents=True)
        (tmp_path / "site" / part / "a.nii.gz").symlink_to(tmp_path / "storage" / file)
    describe(tmp_path / "site", training=[PAIR])
    assert found(tmp_path / "site") == {"a": ("imagesTr/a.nii.gz", "labelsTr/a.nii.gz")}


# ---- nnU-Net

NNUNET = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "spleen": 1}, "file_ending": ".nii.gz"}


@pytest.mark.parametrize("listed", [True, False])
def test_nnunet(tmp_path, listed):
    touch(tmp_path, "imagesTr/s_1_0000.nii.gz", "labelsTr/s_1.nii.gz", "imagesTs/t_0000.nii.gz")
    if listed:
        describe(tmp_path, **NNUNET)
    assert find_cases(tmp_path).layout == "nnU-Net"
    assert found(tmp_path) == {"s_1": ("imagesTr/s_1_0000.nii.gz", "labelsTr/s_1.nii.gz")}


def test_nnunet_version_1_lists_names_without_the_channel(tmp_path):
    touch(describe(tmp_path, training=[PAIR]), "imagesTr/a_0000.nii.gz", "labelsTr/a.nii.gz")
    assert codes(tmp_path) == []
    assert list(found(tmp_path).values()) == [("imagesTr/a_0000.nii.gz", "labelsTr/a.nii.gz")]


@pytest.mark.parametrize(
    "content", [{"channel_names": {"0": "CT", "1": "PET"}}, {"modality": ["CT", "MR"], "training": [PAIR]}]
)
def test_more_than_one_channel_is_refused(tmp_path, content):
    with pytest.raises(DataError, match="only single-channel CT is supported"):
        find_cases(describe(tmp_path, **content))


def test_a_second_channel_on_disk_is_refused(tmp_path):
    touch(tmp_path, "imagesTr/a_0000.nii.gz", "imagesTr/a_0001.nii.gz", "labelsTr/a.nii.gz")
    with pytest.raises(DataError, match=r"a_0001.*single-channel"):
        find_cases(tmp_path)


def test_nnunet_other_file_formats_are_refused(tmp_path):
    with pytest.raises(DataError, match=r'"file_ending".*\.mha'):
        find_cases(describe(tmp_path, **{**NNUNET, "file_ending": ".mha"}))


# ---- plain folders


@pytest.mark.parametrize(
    ("images", "labels"),
    [("images", "labels"), ("image", "label"), ("img", "masks"), ("Images", "mask"), ("images", "segmentations")],
)
@pytest.mark.parametrize("suffix", ["", "_label", "_seg", "-mask"])
def test_two_folders(tmp_path, images, labels, suffix):
    touch(tmp_path, f"{images}/a.nii.gz", f"{images}/b.nii", f"{labels}/a{suffix}.nii.gz", f"{labels}/b{suffix}.nii")
    assert found(tmp_path) == {
        "a": (f"{images}/a.nii.gz", f"{labels}/a{suffix}.nii.gz"),
        "b": (f"{images}/b.nii", f"{labels}/b{suffix}.nii"),
    }


@pytest.mark.parametrize("suffix", ["_label", "_seg", "_mask", "-label", "_segmentation", "_LABEL"])
def test_one_folder(tmp_path, suffix):
    touch(tmp_path, "spleen_1.nii.gz", "spleen_2.nii", f"spleen_1{suffix}.nii.gz", f"spleen_2{suffix}.nii.gz")
    assert found(tmp_path) == {
        "spleen_1": ("spleen_1.nii.gz", f"spleen_1{suffix}.nii.gz"),
        "spleen_2": ("spleen_2.nii", f"spleen_2{suffix}.nii.gz"),
    }


def test_one_folder_with_words_for_both_roles(tmp_path):
    touch(tmp_path, "p1_ct.nii.gz", "p1_seg.nii.gz", "volume-7.nii", "segmentation-7.nii", "ct_3.nii", "ct_3_mask.nii")
    assert dict(found(tmp_path).values()) == {
        "p1_ct.nii.gz": "p1_seg.nii.gz", "volume-7.nii": "segmentation-7.nii", "ct_3.nii": "ct_3_mask.nii",
    }  # fmt: skip


@pytest.mark.parametrize("image", ["ct", "image", "img", "scan", "volume"])
@pytest.mark.parametrize("label", ["label", "seg", "mask", "organs", "spleen"])
def test_a_single_pair_and_one_folder_for_each_case(tmp_path, image, label):
    touch(tmp_path, f"p1/{image}.nii.gz", f"p1/{label}.nii.gz", f"p2/{image}.nii", f"p2/{label}.nii")
    assert found(tmp_path) == {
        "p1": (f"p1/{image}.nii.gz", f"p1/{label}.nii.gz"), "p2": (f"p2/{image}.nii", f"p2/{label}.nii"),
    }  # fmt: skip
    assert len(found(tmp_path / "p1")) == 1


def test_a_case_folder_named_like_its_image(tmp_path):
    touch(tmp_path, "p1/p1.nii.gz", "p1/label.nii.gz", "p2/p2.nii.gz", "p2/p2_seg.nii.gz", "p3/ct.nii", "p3/p3_seg.nii")
    assert {name: files[1] for name, files in found(tmp_path).items()} == {
        "p1": "p1/label.nii.gz", "p2": "p2/p2_seg.nii.gz", "p3": "p3/p3_seg.nii",
    }  # fmt: skip


def test_odd_files_are_named(tmp_path):
    touch(tmp_path, "images/a.nii.gz", "images/c.nii.gz", "labels/a.nii.gz", "labels/b.nii.gz")
    assert found(tmp_path)["c"] == ("images/c.nii.gz", None)
    assert codes(tmp_path) == [("warning", "label-without-image", "labels/b.nii.gz")]


def test_two_labels_or_two_images_of_one_name(tmp_path):
    touch(tmp_path, "ct.nii.gz", "organs.nii.gz", "spleen.nii.gz")
    assert codes(tmp_path) == [("error", "two-labels", "spleen.nii.gz")]
    touch(tmp_path / "b", "images/a.nii", "images/a.nii.gz", "labels/a.nii")
    assert codes(tmp_path / "b") == [("error", "same-name", "images/a.nii.gz")]


def test_other_volumes_of_a_single_case_are_named(tmp_path):
    touch(tmp_path, "p1/ct.nii.gz", "p1/spleen.nii.gz", "p1/liver.nii.gz")
    assert found(tmp_path) == {"p1": ("p1/ct.nii.gz", "p1/spleen.nii.gz")}
    assert codes(tmp_path) == [("warning", "ignored-file", "p1/liver.nii.gz")]


def test_names_of_different_patients_are_not_paired(tmp_path):
    touch(tmp_path, "a.nii.gz", "b_label.nii.gz")
    assert found(tmp_path) == {"a": ("a.nii.gz", None)}


def test_a_case_folder_without_its_label_is_still_a_case(tmp_path):
    touch(tmp_path, "p1/ct.nii.gz", "p1/label.nii.gz", "p2/ct.nii.gz")
    assert found(tmp_path)["p2"] == ("p2/ct.nii.gz", None)


def test_an_unrelated_dataset_json_does_not_hide_pairs(tmp_path):
    touch(describe(tmp_path, title="ours"), "images/a.nii", "labels/a.nii")
    assert list(found(tmp_path)) == ["a"]


# ---- nothing found, or malformed


@pytest.mark.parametrize("files", [(), ("notes.txt",), ("imagesTr/readme",), ("labels/a.nii",), ("a.nii",)])
def test_nothing_found_names_the_folder_and_the_layouts(tmp_path, files):
    with pytest.raises(DataError) as error:
        find_cases(touch(tmp_path, *files))
    for text in (str(tmp_path), "Decathlon", "nnU-Net", "imagesTr", "NAME_label", "NAME/ct.nii.gz"):
        assert text in str(error.value)


def test_a_folder_that_is_none(tmp_path):
    with pytest.raises(DataError, match="does not exist"):
        find_cases(tmp_path / "none")
    with pytest.raises(DataError, match="is a file, not a folder"):
        find_cases(touch(tmp_path, "file") / "file")


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may read every folder")
@pytest.mark.parametrize("mode", [0o000, 0o400])
def test_a_folder_that_may_not_be_read(tmp_path, mode):
    write_decathlon(tmp_path / "site", 1)
    (tmp_path / "site").chmod(mode)
    try:
        with pytest.raises(DataError, match="cannot be read"):
            find_cases(tmp_path / "site")
    finally:
        (tmp_path / "site").chmod(0o700)


def test_a_folder_that_the_system_refuses(tmp_path, monkeypatch):
    monkeypatch.setattr(Path, "iterdir", lambda path: (_ for _ in ()).throw(PermissionError(13, "Permission denied")))
    with pytest.raises(DataError, match=r"cannot be read: .*Permission denied"):
        find_cases(tmp_path)


# ---- sites


def test_one_data_set_is_no_sites(tmp_path):
    assert find_sites(write_decathlon(tmp_path)) is None
    assert find_sites(touch(tmp_path / "b", "p1/ct.nii", "p1/seg.nii", "p2/ct.nii", "p2/seg.nii")) is None


def test_sub_folders_are_sites_sorted(tmp_path):
    write_decathlon(tmp_path / "zurich", 1)
    touch(tmp_path / "bonn", "images/a.nii", "labels/a.nii")
    touch(tmp_path / "lyon", "a.nii", "a_seg.nii", "b.nii", "b_seg.nii")
    touch(tmp_path / "kiel", "p1/ct.nii", "p1/seg.nii")
    touch(tmp_path, "logs/today.txt", "readme.nii")
    sites = find_sites(tmp_path)
    assert list(sites.items()) == [(name, tmp_path / name) for name in ("bonn", "kiel", "lyon", "zurich")]


def test_a_site_with_one_pair_beside_a_site_with_many(tmp_path):
    touch(tmp_path / "a", "ct.nii", "seg.nii")
    write_decathlon(tmp_path / "b", 2)
    assert list(find_sites(tmp_path)) == ["a", "b"]


def test_a_malformed_site_is_not_skipped(tmp_path):
    write_decathlon(tmp_path / "a")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "dataset.json").write_text("{")
    with pytest.raises(DataError, match="not valid JSON"):
        find_sites(tmp_path)


def test_no_site_at_all(tmp_path):
    with pytest.raises(DataError, match="Understood are"):
        find_sites(touch(tmp_path, "a/notes.txt"))
