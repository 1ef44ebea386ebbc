"""The phantom cohort: the same for the same arguments, laid out as promised, and hard enough to mean something."""

import gzip
import json
from itertools import pairwise
from pathlib import Path

import nibabel
import numpy as np
import pytest
from scipy.ndimage import label as components

from fl_app.data.phantom import SITE_CHARACTERS, character_of, make_case, make_cohort
from fl_app.errors import UsageError

COARSE = 0.5


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def in_ras(image, label, affine):
    """Turns a case to RAS and returns image, label, spacing (mm)."""
    turned = nibabel.as_closest_canonical(nibabel.Nifti1Image(image, affine))
    truth = nibabel.as_closest_canonical(nibabel.Nifti1Image(label, affine))
    return np.asarray(turned.dataobj), np.asarray(truth.dataobj), np.asarray(turned.header.get_zooms())


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    """Three sites at full light size, two cases each."""
    return make_cohort(tmp_path_factory.mktemp("phantom") / "cohort", cases=(2, 2, 2))


@pytest.fixture(scope="module")
def light_cases():
    """Four cases of each of the first three sites, in RAS."""
    return [[in_ras(*make_case(character_of(site), (0, site, case))) for case in range(4)] for site in range(3)]


# the same for the same arguments


def test_same_arguments_make_the_same_bytes(tmp_path):
    for name in ("one", "two"):
        make_cohort(tmp_path / name, sites=2, cases=(2, 1), detail=COARSE)
    assert bytes_of(tmp_path / "one") == bytes_of(tmp_path / "two")


def test_another_seed_makes_other_patients():
    one, other = (make_case(SITE_CHARACTERS[0], seed, COARSE)[1] for seed in (1, 2))
    assert one.shape != other.shape or (one != other).any()


def test_a_case_does_not_depend_on_the_other_sites_and_cases(tmp_path):
    few, many = tmp_path / "few", tmp_path / "many"
    make_cohort(few, sites=2, cases=(1, 2), detail=COARSE)
    make_cohort(many, sites=3, cases=(2, 3, 1), detail=COARSE)
    kept = {name: data for name, data in bytes_of(few).items() if name.endswith(".nii.gz")}
    assert kept.items() <= bytes_of(many).items()


def test_detail_shows_the_same_patient_on_a_finer_matrix():
    coarse, fine = (in_ras(*make_case(SITE_CHARACTERS[0], 5, detail)) for detail in (0.5, 1.0))
    assert fine[0].shape[0] == 2 * coarse[0].shape[0]
    volumes = [float(label.sum() * spacing.prod()) for _, label, spacing in (coarse, fine)]
    assert volumes[0] == pytest.approx(volumes[1], rel=0.15)


# the layout


def test_layout_is_the_decathlons(cohort):
    names = []
    for folder in cohort:
        listing = json.loads((folder / "dataset.json").read_text())
        assert listing["labels"] == {"0": "background", "1": "spleen"}
        assert listing["modality"] == {"0": "CT"}
        assert listing["numTraining"] == len(listing["training"]) == 2
        assert listing["test"] == []
        for entry in listing["training"]:
            image, label = (nibabel.load(folder / entry[key]) for key in ("image", "label"))
            assert image.get_data_dtype() == np.int16
            assert label.get_data_dtype() == np.uint8
            assert image.shape == label.shape
            assert np.allclose(image.affine, label.affine)
            names.append(Path(entry["image"]).name)
    assert len(set(names)) == len(names)
    assert [folder.name for folder in cohort] == ["site-1", "site-2", "site-3"]


def test_files_carry_no_time_of_writing(cohort):
    path = next((cohort[0] / "imagesTr").iterdir())
    assert path.read_bytes()[4:8] == bytes(4)
    assert len(gzip.decompress(path.read_bytes())) > 352


def test_each_site_has_its_own_number_of_cases_and_any_number_of_sites_works():
    assert [character.cases for character in SITE_CHARACTERS[:3]] == [16, 12, 9]
    many = [character_of(site) for site in range(12)]
    assert len({character.name for character in many}) == 12
    for first, later in zip(many, many[len(SITE_CHARACTERS) :], strict=False):
        assert first.phase == later.phase
        assert first != later


def test_progress_tells_each_case(tmp_path):
    lines = []
    make_cohort(tmp_path / "cohort", sites=2, cases=(2, 1), detail=0.3, progress=lines.append)
    assert lines == ["site-1: case 1 of 2", "site-1: case 2 of 2", "site-2: case 1 of 1"]


# anatomy


def test_values_are_those_of_ct_and_labels_binary(light_cases):
    for image, label, _ in (case for site in light_cases for case in site):
        assert image.dtype == np.int16
        assert label.dtype == np.uint8
        assert -1024 <= image.min() < -900
        assert 300 < image.max() <= 3071
        assert set(np.unique(label)) == {0, 1}


def test_spleen_is_on_the_patients_left_and_of_a_patients_size(light_cases):
    for _, label, spacing in (case for site in light_cases for case in site):
        # x runs to the right, y to the front
        x, y, _z = (places.mean() / size for places, size in zip(np.nonzero(label), label.shape, strict=True))
        assert x < 0.35
        assert y < 0.55
        assert 60 < label.sum() * spacing.prod() / 1000 < 700
        parts, _ = components(label)
        assert np.bincount(parts.ravel())[1:].max() > 0.9 * label.sum()


def test_liver_is_on_the_patients_right(light_cases):
    for image, label, _ in light_cases[0]:
        spleen = image[label > 0].mean()
        soft = np.abs(image - spleen) < 30
        slices = np.nonzero(label.any((0, 1)))[0]
        soft = soft[:, :, slices.min() : slices.max()]
        middle = soft.shape[0] // 2
        assert soft[middle:].sum() > 1.3 * soft[:middle].sum()


@pytest.mark.parametrize("site", range(3))
def test_a_window_round_the_spleen_catches_much_else(light_cases, site):
    for image, label, _ in light_cases[site]:
        low, high = np.percentile(image[label > 0], (10, 90))
        caught = (image >= low) & (image <= high)
        assert (caught & (label == 0)).sum() > 4 * (caught & (label > 0)).sum()


# geometry


@pytest.mark.parametrize("character", SITE_CHARACTERS, ids=lambda character: character.orientation)
def test_affine_tells_the_stored_orientation_and_spacing(character):
    image, label, affine = make_case(character, 3, COARSE)
    assert "".join(nibabel.aff2axcodes(affine)) == character.orientation
    turned, truth, spacing = in_ras(image, label, affine)
    assert abs(np.linalg.det(affine[:3, :3])) == pytest.approx(spacing.prod(), rel=1e-4)
    assert spacing[0] == pytest.approx(spacing[1])
    low, high = (thickness / COARSE for thickness in character.slice_mm)
    assert low - 0.01 <= spacing[2] <= high + 0.01
    # the stored order changes nothing about the patient: lungs lie above, the spleen left
    air = (turned < -600)[turned.shape[0] // 4 : -turned.shape[0] // 4].sum((0, 1))
    assert air[-1] > air[: len(air) // 2].mean()
    assert np.nonzero(truth)[0].mean() < 0.4 * truth.shape[0]


def test_orientations_differ_between_sites():
    assert len({character.orientation for character in SITE_CHARACTERS}) >= 4


# the characters of the sites


def test_sites_differ_in_noise_slices_and_phase(light_cases):
    noise, enhancement, slices = [], [], []
    for site in light_cases:
        spleens = [image[label > 0] for image, label, _ in site]
        steps = [np.diff(image, axis=0)[label[1:] + label[:-1] == 2].std() for image, label, _ in site]
        noise.append(np.mean(steps))
        enhancement.append(np.mean([spleen.mean() for spleen in spleens]))
        slices.append(np.mean([spacing[2] for *_, spacing in site]))
    assert noise[1] > 1.5 * noise[0]
    assert enhancement[2] < 60 < 80 < min(enhancement[:2])
    assert slices[1] < slices[0] < slices[2]


def test_spleens_are_enlarged_at_the_haematology_centre():
    volumes = []
    for site in (0, 3):
        cases = [in_ras(*make_case(character_of(site), (0, site, case), COARSE)) for case in range(6)]
        volumes.append(np.mean([label.sum() * spacing.prod() / 1000 for _, label, spacing in cases]))
    assert volumes[1] > 1.4 * volumes[0]


def test_no_threshold_does_the_work_of_a_network(light_cases):
    best = 0.0
    for low in range(20, 121, 20):
        for width in (40, 60, 80):
            scores = []
            for image, label, _ in (case for site in light_cases for case in site[:3]):
                # the patient's left half, where the spleen is
                left, truth = image[: image.shape[0] // 2], label[: image.shape[0] // 2] > 0
                parts, count = components((left >= low) & (left <= low + width))
                largest = parts == 1 + np.bincount(parts.ravel())[1:].argmax() if count else parts > 0
                scores.append(2 * (largest & truth).sum() / (largest.sum() + (label > 0).sum()))
            best = max(best, float(np.mean(scores)))
    assert best < 0.6


# a folder that is there already


def test_the_same_cohort_is_reused_and_another_replaces_it(tmp_path):
    folder = tmp_path / "cohort"
    make_cohort(folder, sites=1, cases=(1,), detail=0.3)
    written = (folder / "cohort.json").stat().st_mtime_ns
    assert make_cohort(folder, sites=1, cases=(1,), detail=0.3) == [folder / "site-1"]
    assert (folder / "cohort.json").stat().st_mtime_ns == written
    make_cohort(folder, sites=2, cases=(1, 1), detail=0.3)
    assert len(list(folder.glob("site-*/imagesTr/*.nii.gz"))) == 2


def test_a_run_that_died_leaves_nothing_that_looks_whole(tmp_path):
    folder = tmp_path / "cohort"

    def die(line: str) -> None:
        if "case 2" in line:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make_cohort(folder, sites=1, cases=(3,), detail=0.3, progress=die)
    assert not folder.exists()
    make_cohort(folder, sites=1, cases=(3,), detail=0.3)
    make_cohort(tmp_path / "clean", sites=1, cases=(3,), detail=0.3)
    assert bytes_of(folder) == bytes_of(tmp_path / "clean")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["clean", "cohort"]


def test_a_cohort_that_lost_a_file_is_made_again(tmp_path):
    folder = tmp_path / "cohort"
    make_cohort(folder, sites=1, cases=(2,), detail=0.3)
    before = bytes_of(folder)
    next((folder / "site-1" / "labelsTr").iterdir()).unlink()
    make_cohort(folder, sites=1, cases=(2,), detail=0.3)
    assert bytes_of(folder) == before


def test_other_peoples_files_are_never_replaced(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(UsageError, match="phantom cohort"):
        make_cohort(tmp_path, sites=1, cases=(1,), detail=0.3)
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


@pytest.mark.parametrize(
    "arguments",
    [
        {"sites": 0},
        {"sites": -1},
        {"seed": -1},
        {"detail": 0.0},
        {"detail": -1.0},
        {"detail": float("nan")},
        {"detail": 100.0},
        {"cases": (3,)},
        {"cases": (3, 0, 2)},
        {"cases": ()},
    ],
    ids=str,
)
def test_arguments_that_do_not_fit_are_told_in_one_sentence(tmp_path, arguments):
    with pytest.raises(UsageError) as caught:
        make_cohort(tmp_path / "cohort", **arguments)
    sentence = str(caught.value)
    assert sentence.endswith(".")
    assert "\n" not in sentence
    assert not (tmp_path / "cohort").exists()


def test_volumes_spread_between_patients(light_cases):
    volumes = sorted(label.sum() * spacing.prod() for site in light_cases for _, label, spacing in site)
    assert volumes[-1] > 1.5 * volumes[0]
    assert all(one < other for one, other in pairwise(volumes))
