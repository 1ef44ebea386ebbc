"""`fedspleen predict`: the same answer as in memory, in the scan's own geometry, and plain words where it cannot."""

import csv
import gzip
import itertools
import math
import subprocess
import sys
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from monai.data.utils import compute_importance_map, dense_patch_slices
from monai.inferers.utils import sliding_window_inference
from scipy import ndimage
from scipy.spatial.transform import Rotation

from fl_app.cli.predict import predict as command
from fl_app.config_file import parse_job
from fl_app.data import grid
from fl_app.data.cases import Case
from fl_app.data.preparation import load_label, prepare_cases
from fl_app.errors import DataError, UsageError
from fl_app.model_file import ModelInfo, save_model
from fl_app.prediction.components import keep_largest
from fl_app.prediction.predictor import Predictor
from fl_app.prediction.scan import NiftiScan
from fl_app.prediction.scores import hausdorff95_mm
from fl_app.prediction.slabs import SlabFile
from fl_app.training.evaluation import predict, to_native_grid
from fl_app.training.precision import MixedPrecision
from fl_app.training.trainer import ready_network
from fl_app.training.windows import Windows
from tests.federation import fedspleen
from tests.volumes import AFFINE, make_ct, write_nifti

JOB = """
seed: 5
data: {labels: {spleen: 3, liver: 1}, spacing_mm: [4, 4, 5], patch_voxels: [16, 16, 8]}
network: {channels: [4, 8], name: NAME, normalisation: NORM}
training: {precision: fp32, augmentation: {flip_probability: [0, 0.5, 0.5]}}
"""
CPU = torch.device("cpu")


def write_model(path, name="unet", normalisation="instance", text=JOB):
    """A model with random weights whose classes all occur."""
    job = parse_job(text.replace("NAME", name).replace("NORM", normalisation))
    save_model(path, ready_network(job, CPU).state_dict(), ModelInfo(job, 1, None, {}))
    return path


def write_scan(path, affine=AFFINE, kind=nibabel.Nifti1Image, size=1):
    """A CT whose label, of the values 1 and 3, lies beside it."""
    image, _ = make_ct()
    image = np.tile(image, (1, 1, size))
    label = np.where(image > 45, 3, np.where(image > 20, 1, 0)).astype(np.uint8)
    write_nifti(path, image, affine, kind)
    return path, write_nifti(path.with_name(path.name.replace(".nii", "_label.nii")), label, affine)


def turned(angles=(0, 0, 0), axes=(0, 1, 2), signs=(1, 1, 1), shear=0.0):
    """An affine whose array axes point anywhere."""
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler("xyz", angles, degrees=True).as_matrix() @ np.diag([4.0, 4, 5])
    affine[:3, :3] = affine[:3, list(axes)] * signs
    affine[1, 2] += shear
    affine[:3, 3] = 20, -31, 100
    return affine


GEOMETRIES = {
    "RAS": AFFINE,
    "LPS": turned(signs=(-1, -1, 1)),
    "upside down": turned(signs=(1, 1, -1)),
    "sagittal": turned(axes=(1, 2, 0), signs=(-1, 1, -1)) * np.array([1.1, 1.2, 0.9, 1]),
    "oblique": turned((12, -8, 20), signs=(-1, -1, 1)) * np.array([0.9, 0.9, 0.7, 1]),
    "sheared": turned(shear=1.0),
}


@pytest.fixture
def small_slabs(monkeypatch):
    """Slabs of a few planes, so that a small volume has many."""
    monkeypatch.setattr(grid, "SLAB_VOXELS", 1500)


@pytest.fixture
def model(tmp_path):
    return write_model(tmp_path / "model.safetensors")


def run(model, inputs, out, **options):
    settings = {"probabilities": False, "flips": False, "largest_component": False, "evaluate": None}
    command(
        model, inputs, out, **{**settings, "overwrite": False, "device": "cpu", "workers": 0, "slurm": None, **options}
    )


def in_memory(predictor, image, label):
    """Probabilities on the scan's grid, and labels, by the code that scores the final test."""
    case = prepare_cases([Case("case", image, label)], predictor.job.data, None)[0]
    found = predict(predictor.network, case.image, predictor.job, predictor.precision)
    return case, found, to_native_grid(found, case.affine, load_label(label, predictor.job.data)).numpy()


def in_ras(voxels, affine):
    return np.asarray(nibabel.as_closest_canonical(nibabel.Nifti1Image(voxels, affine)).dataobj)


@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.usefixtures("small_slabs")
def test_it_is_what_the_final_test_scores_in_every_orientation(tmp_path, model, geometry):
    affine = GEOMETRIES[geometry]
    image, label = write_scan(tmp_path / "ct.nii.gz", affine)
    run(model, [image], tmp_path / "out", probabilities=True)
    _, _, expected = in_memory(Predictor(model, CPU), image, label)
    got = nibabel.load(tmp_path / "out" / "ct_label.nii.gz")
    labels = in_ras(np.array([0, 3, 1], np.uint8)[expected], np.eye(4))
    predicted = in_ras(np.asarray(got.dataobj), affine)
    assert np.array_equal(predicted, labels)
    assert {0, 1, 3} == set(np.unique(predicted))


@pytest.mark.parametrize(("name", "normalisation"), [("unet", "batch"), ("segresnet", "group")])
@pytest.mark.usefixtures("small_slabs")
def test_probabilities_differ_from_those_in_memory_by_less_than_1e4(tmp_path, name, normalisation):
    """Measured: 1.2e-7, the last bit of float32."""
    model = write_model(tmp_path / "model.safetensors", name, normalisation, JOB.replace("[4, 8]", "[8, 16]"))
    image, label = write_scan(tmp_path / "ct.nii.gz", size=3)
    run(model, [image], tmp_path / "out", probabilities=True)
    predictor = Predictor(model, CPU)
    case, found, _ = in_memory(predictor, image, label)
    # the scan's spacing is the model's: its grid differs by the air that was cut off
    start = np.rint(np.linalg.solve(AFFINE, case.affine.numpy())[:3, 3]).astype(int)
    box = tuple(slice(first, first + size) for first, size in zip(start, found.shape[1:], strict=True))
    for number, organ in ((1, "spleen"), (2, "liver")):
        got = nibabel.load(tmp_path / "out" / f"ct_{organ}_probability.nii.gz")
        assert got.get_data_dtype() == np.float32
        assert np.abs(np.asarray(got.dataobj)[box] - found[number].numpy()).max() < 1e-4


def plainly(network, image, job):
    """The plain way: probabilities, with sums that span the whole volume, and windows spread as nnU-Net does."""
    sides, overlap = job.window, job.evaluation.overlap
    whole = [max(size, side) for size, side in zip(image.shape[1:], sides, strict=True)]
    before = [(padded - size) // 2 for padded, size in zip(whole, image.shape[1:], strict=True)]
    padded = torch.zeros(1, 1, *whole)
    inside = tuple(slice(start, start + size) for start, size in zip(before, image.shape[1:], strict=True))
    padded[(0, 0, *inside)] = image[0]
    starts = [
        np.linspace(0, size - side, int(np.ceil((size - side) / int(side * (1 - overlap)))) + 1).round().astype(int)
        for size, side in zip(whole, sides, strict=True)
    ]
    weights, sums, norm = compute_importance_map(sides, mode="gaussian"), 0 * padded, 0 * padded
    sums = sums.repeat(1, 1 + len(job.data.labels), 1, 1, 1)
    for corner in itertools.product(*starts):
        window = (..., *(slice(start, start + side) for start, side in zip(corner, sides, strict=True)))
        with torch.no_grad():
            sums[window] += network(padded[window]) * weights
        norm[window] += weights
    return (sums / norm)[(0, slice(None), *inside)].softmax(0)


def by_monai(network, image, job):
    with torch.no_grad():
        logits = sliding_window_inference(
            image[None].float(), job.window, 1, network, job.evaluation.overlap, "gaussian"
        )
    return logits[0].softmax(0)


@pytest.mark.parametrize("shape", [(24, 40, 8), (10, 9, 5), (16, 16, 8)])
def test_windows_are_monais_where_a_volume_is_whole_steps_long(shape):
    job = parse_job(JOB.replace("NAME", "unet").replace("NORM", "group") + "evaluation: {overlap: 0.5}\n")
    network = ready_network(job, CPU).eval()
    image = torch.rand(1, *shape, generator=torch.Generator().manual_seed(0))
    found = predict(network, image, job, MixedPrecision("fp32", CPU))
    assert torch.allclose(found, by_monai(network, image, job), atol=1e-5)


@pytest.mark.parametrize("overlap", [0, 0.25, 0.5, 0.9])
@pytest.mark.parametrize("size", [16, 17, 31, 32, 40, 41, 63])
def test_windows_are_as_few_as_monais(size, overlap):
    job = parse_job(JOB.replace("NAME", "unet").replace("NORM", "group") + f"evaluation: {{overlap: {overlap}}}\n")
    windows = Windows((size, 16, 8), 2, job)
    (whole,) = windows.tiles()
    step = max(1, int(16 * (1 - overlap)))
    assert windows.count(whole) == len(dense_patch_slices((size, 16, 8), (16, 16, 8), (step, 16, 8)))


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("shape", [(20, 33, 41), (10, 9, 5), (16, 16, 8), (40, 16, 7)])
@pytest.mark.parametrize("evaluation", ["", "evaluation: {windows_at_once: 1, window_voxels: [8, 8, 4]}\n"])
def test_windows_blend_as_in_the_plain_way(axis, shape, evaluation):
    job = parse_job(JOB.replace("NAME", "unet").replace("NORM", "group") + evaluation)
    assert job.window == ((8, 8, 4) if evaluation else (16, 16, 8))
    network = ready_network(job, CPU).eval()
    image = torch.rand(1, *shape, generator=torch.Generator().manual_seed(0))
    expected = plainly(network, image, job)
    done = []
    windows = Windows(shape, axis, job)
    (whole,) = windows.tiles()
    planes = windows.predict(
        network, (), lambda box: image[(slice(None), *box)], MixedPrecision("fp32", CPU), whole, done.append
    )
    starts, parts = zip(*planes, strict=True)
    assert torch.allclose(torch.cat(parts, axis + 1), expected, atol=1e-5)
    assert list(starts) == [0, *np.cumsum([part.shape[axis + 1] for part in parts])[:-1]]
    assert sum(done) == windows.count(whole)


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("pieces", [1, 3])
def test_no_seam_shows_between_tiles(axis, pieces, monkeypatch):
    """To the last bit: each tile sees all windows that reach into it."""
    job = parse_job(JOB.replace("NAME", "unet").replace("NORM", "instance"))
    network = ready_network(job, CPU).eval()
    image = torch.rand(1, 40, 37, 25, generator=torch.Generator().manual_seed(0))
    expected = predict(network, image, job, MixedPrecision("fp32", CPU))
    windows = Windows((40, 37, 25), axis, job)
    monkeypatch.setattr("fl_app.training.windows.TILE_BYTES", 4 * 4 * job.data.patch_voxels[axis] * 15**2)
    tiles = windows.tiles(pieces)
    assert len(tiles) >= 4 * min(pieces, 2)
    found = torch.full_like(expected, torch.nan)
    for tile in tiles:
        for first, part in windows.predict(
            network, (), lambda box: image[(slice(None), *box)], MixedPrecision("fp32", CPU), tile
        ):
            place = list(tile)
            place[axis] = slice(first, first + part.shape[axis + 1])
            found[(slice(None), *place)] = part
    assert torch.allclose(found, expected, atol=1e-6)


def test_the_network_sees_an_empty_window_once_and_nothing_changes():
    job = parse_job(JOB.replace("NAME", "unet").replace("NORM", "group"))
    network = ready_network(job, CPU).eval()
    image = torch.zeros(1, 60, 33, 20)
    image[:, 30:40, 10:20, 3:9] = torch.rand(1, 10, 10, 6, generator=torch.Generator().manual_seed(0))
    expected = plainly(network, image, job)
    seen = []
    network.register_forward_hook(lambda module, inputs, output: seen.append(bool(inputs[0].any())))
    found = predict(network, image, job, MixedPrecision("fp32", CPU))
    windows = Windows((60, 33, 20), 2, job)
    assert torch.allclose(found, expected, atol=1e-5)
    assert seen.count(False) == 1 and len(seen) < windows.count(windows.tiles()[0]) / 2


def test_flips_average_the_probabilities_of_mirrored_scans(tmp_path, model):
    image, label = write_scan(tmp_path / "ct.nii.gz")
    plain, flipped = Predictor(model, CPU), Predictor(model, CPU, flips=True)
    case, _, _ = in_memory(plain, image, label)
    job = plain.job
    expected = torch.zeros(3, *case.image.shape[1:])
    for axes in ((), (3,), (4,), (3, 4)):  # training mirrored along y and z

        def network(patches, axes=axes):
            return plain.network(patches.flip(axes)).flip(axes)

        expected += plainly(network, case.image, job) / 4
    (tmp_path / "scratch").mkdir()
    flipped.predict(NiftiScan(image, tmp_path / "scratch"), tmp_path / "scratch")
    stored = np.fromfile(tmp_path / "scratch" / "probabilities-0", np.float32)
    got = np.moveaxis(stored.reshape(expected.shape[3], 3, *expected.shape[1:3]), 0, 3)
    assert np.abs(got - expected.numpy()).max() < 1e-5


def test_flips_are_refused_where_training_did_not_mirror(tmp_path):
    model = write_model(tmp_path / "m", text=JOB.replace("[0, 0.5, 0.5]", "[0, 0, 0]"))
    with pytest.raises(UsageError, match="trained without mirroring"):
        Predictor(model, CPU, flips=True)


@pytest.mark.parametrize("kind", [nibabel.Nifti1Image, nibabel.Nifti2Image])
def test_the_label_map_has_the_scans_geometry_and_nothing_of_its_texts(tmp_path, model, kind):
    image, _ = make_ct()
    original = kind(image[..., None], None)
    original.set_sform(turned((5, 0, 0)), 2)
    original.set_qform(turned((5, 0, 0)), 1)
    original.header["descrip"] = b"Doe^Jane"
    original.header.extensions.append(nibabel.nifti1.Nifti1Extension("comment", b"Doe^Jane"))
    nibabel.save(original, tmp_path / "ct.nii")
    run(model, [tmp_path / "ct.nii"], tmp_path / "out")
    path = tmp_path / "out" / "ct_label.nii.gz"
    got = nibabel.load(path)
    assert type(got) is kind and got.shape == original.shape and got.get_data_dtype() == np.uint8
    assert np.array_equal(got.affine, nibabel.load(tmp_path / "ct.nii").affine)
    assert (got.header["sform_code"], got.header["qform_code"]) == (2, 1)
    assert b"Doe" not in gzip.decompress(path.read_bytes())


def test_volumes_are_printed_and_kept_in_a_table(tmp_path, model, capsys):
    first, _ = write_scan(tmp_path / "a.nii.gz")
    second, _ = write_scan(tmp_path / "b.nii.gz", turned((10, 0, 0)))
    out = tmp_path / "out"
    run(model, [first], out)
    run(model, [second], out)
    run(model, [first], out, overwrite=True)
    rows = list(csv.DictReader((out / "volumes.csv").open()))
    assert [(row["scan"], row["organ"]) for row in rows] == [
        (scan, organ) for scan in ("b", "a") for organ in ("spleen", "liver")
    ]
    for row in rows:
        label = np.asarray(nibabel.load(out / f"{row['scan']}_label.nii.gz").dataobj)
        voxels = int((label == {"spleen": 3, "liver": 1}[row["organ"]]).sum())
        assert int(row["voxels"]) == voxels and float(row["volume_ml"]) == pytest.approx(voxels * 0.08, abs=1e-3)
    assert f"spleen {float(rows[-2]['volume_ml']):.1f} mL" in capsys.readouterr().out


def test_results_in_the_scans_own_folder_are_not_taken_for_scans(tmp_path, model):
    write_scan(tmp_path / "scans" / "ct.nii.gz")[1].unlink()
    for _ in range(2):
        run(model, [tmp_path / "scans"], tmp_path / "scans", probabilities=True, overwrite=True)
    assert len(list((tmp_path / "scans").glob("*.nii.gz"))) == 4


def test_no_file_is_left_beside_the_results(tmp_path, model):
    image, _ = write_scan(tmp_path / "ct.nii.gz")
    run(model, [image], tmp_path / "out")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"ct_label.nii.gz", "volumes.csv"}


@pytest.mark.usefixtures("small_slabs")
@pytest.mark.parametrize("seed", range(8))
def test_the_largest_component_is_the_one_of_the_whole_volume(tmp_path, monkeypatch, seed):
    monkeypatch.setattr(grid, "SLAB_VOXELS", [1, 300, 700][seed % 3])
    random = np.random.default_rng(seed)
    labels = (random.random((14, 9, 11)) < 0.17).astype(np.uint8) * random.integers(1, 3, (14, 9, 11), np.uint8)
    file = SlabFile(tmp_path / "labels", labels.shape, np.uint8)
    file.write(0, labels)
    keep_largest(file, 3)
    got = file.read(0, 14)
    for organ in (1, 2):
        numbers, count = ndimage.label(labels == organ, np.ones((3, 3, 3)))
        sizes = np.bincount(numbers.ravel(), minlength=count + 1)[1:]
        kept = np.unique(numbers[got == organ])
        assert len(kept) == 1 and sizes[kept[0] - 1] == sizes.max()
        assert (got == organ).sum() == sizes.max()


def test_largest_component_leaves_one_part_of_each_organ(tmp_path, model):
    image, _ = write_scan(tmp_path / "ct.nii.gz")
    run(model, [image], tmp_path / "out", largest_component=True)
    labels = np.asarray(nibabel.load(tmp_path / "out" / "ct_label.nii.gz").dataobj)
    rows = list(csv.DictReader((tmp_path / "out" / "volumes.csv").open()))
    for value, row in zip((3, 1), rows, strict=True):
        assert ndimage.label(labels == value, np.ones((3, 3, 3)))[1] == 1
        assert int(row["voxels"]) == (labels == value).sum()


def test_scores_against_true_labels(tmp_path, model, capsys):
    for name in ("a", "b"):
        write_scan(tmp_path / "images" / f"{name}.nii.gz")
    out = tmp_path / "out"
    run(model, [tmp_path / "images"], out)
    perfect = tmp_path / "labels"
    perfect.mkdir()
    (perfect / "a.nii.gz").write_bytes((out / "a_label.nii.gz").read_bytes())
    empty = nibabel.load(out / "b_label.nii.gz")
    write_nifti(perfect / "b.nii.gz", np.zeros(empty.shape, np.uint8))
    run(model, [tmp_path / "images"], out, evaluate=perfect, overwrite=True)
    rows = {(row["scan"], row["organ"]): row for row in csv.DictReader((out / "scores.csv").open())}
    assert rows["a", "spleen"] | {"scan": "", "organ": ""} == {
        "scan": "", "organ": "", "dice": "1.000000", "surface_dice": "1.000000", "hausdorff95_mm": "0.000000"
    }  # fmt: skip
    assert float(rows["b", "liver"]["dice"]) == 0 and float(rows["b", "liver"]["hausdorff95_mm"]) == math.inf
    assert "HD95" in capsys.readouterr().out


def test_hausdorff_distance_is_in_millimetres():
    first, second = torch.zeros(2, 30, 20, 10, dtype=torch.bool)
    first[5:15, 5:15, 2:8] = True
    second[8:18, 5:15, 2:8] = True  # 3 voxels of 2.5 mm away
    assert hausdorff95_mm(first, second, (2.5, 1, 1)) == pytest.approx(7.5)
    assert hausdorff95_mm(first, first & False, (1, 1, 1)) == math.inf
    assert math.isnan(hausdorff95_mm(first & False, first & False, (1, 1, 1)))


def test_wrong_inputs_end_in_one_sentence(tmp_path, model):
    image, label = write_scan(tmp_path / "ct.nii.gz")
    out = tmp_path / "out"
    run(model, [image], out)
    before = (out / "ct_label.nii.gz").read_bytes()
    write_scan(tmp_path / "other" / "ct.nii.gz")
    (tmp_path / "note.txt").write_text("no scan")
    (tmp_path / "empty").mkdir()
    write_nifti(tmp_path / "4d.nii.gz", np.zeros((8, 8, 8, 3), np.int16))
    write_nifti(tmp_path / "grey.nii.gz", np.full((8, 8, 8), 200, np.int16) + np.arange(8, dtype=np.int16) * 8)
    write_nifti(tmp_path / "air.nii.gz", np.full((8, 8, 8), -1150, np.int16) + np.arange(8, dtype=np.int16) * 60)
    (tmp_path / "cut.nii.gz").write_bytes(image.read_bytes()[:-500])
    (tmp_path / "cut.nii").write_bytes(gzip.decompress(image.read_bytes())[:-500])
    (tmp_path / "file").write_text("")
    (tmp_path / "shifted").mkdir()
    write_nifti(tmp_path / "shifted" / "ct.nii.gz", np.asarray(nibabel.load(label).dataobj), turned())
    for inputs, options, words in (
        ([image], {}, "ct_label.nii.gz exists; .*--overwrite"),
        ([tmp_path / "none.nii"], {}, "none.nii: there is no such file"),
        ([tmp_path / "note.txt"], {}, "note.txt is no scan"),
        ([tmp_path / "empty"], {}, "empty holds no NIfTI images and no DICOM series"),
        ([image, tmp_path / "other" / "ct.nii.gz"], {}, "would both be named ct"),
        ([tmp_path / "4d.nii.gz"], {}, "4d.nii.gz is not one 3D volume: its dimensions are 8 x 8 x 8 x 3"),
        ([tmp_path / "grey.nii.gz"], {}, "grey: .*Hounsfield units"),
        ([tmp_path / "air.nii.gz"], {}, "air shows no body"),
        ([tmp_path / "cut.nii.gz"], {}, "cut.nii.gz cannot be read"),
        ([tmp_path / "cut.nii"], {}, "cut.nii is cut short"),
        ([image], {"out": tmp_path / "file" / "x"}, "file"),
        ([image], {"evaluate": tmp_path / "empty", "overwrite": True}, "no label map for ct"),
        ([image], {"evaluate": tmp_path / "shifted", "overwrite": True}, "not in the same place"),
        ([tmp_path / "other", tmp_path / "4d.nii.gz"], {"evaluate": label, "overwrite": True}, "one label file for 2"),
    ):  # fmt: skip
        with pytest.raises((DataError, UsageError), match=words) as error:
            run(model, inputs, **{"out": out, **options})
        assert "\n" not in str(error.value)
    assert (out / "ct_label.nii.gz").read_bytes() == before


def test_one_bad_scan_does_not_stop_the_others(tmp_path, model):
    folder = tmp_path / "scans"
    write_nifti(folder / "a.nii.gz", np.zeros((8, 8, 8, 3), np.int16))
    write_scan(folder / "b.nii.gz")
    with pytest.raises(DataError, match=r"1 of 2 scans failed:\n.*a.nii.gz is not one 3D volume"):
        run(model, [folder], tmp_path / "out")
    assert (tmp_path / "out" / "b_label.nii.gz").exists()


def test_an_input_is_never_overwritten(tmp_path, model):
    image, _ = write_scan(tmp_path / "ct.nii.gz")
    trap = tmp_path / "ct_label.nii.gz"
    with pytest.raises(UsageError, match="is an input and would be overwritten"):
        run(model, [image, trap], tmp_path, overwrite=True)
    with pytest.raises(DataError, match="not a model that fedspleen wrote"):
        run(image, [image], tmp_path / "out")


@pytest.mark.slow
def test_the_command_line(tmp_path, model):
    image, label = write_scan(tmp_path / "ct.nii.gz")
    done = fedspleen("predict", model, image, "--out", tmp_path / "out", "--evaluate", label)
    assert done.returncode == 0, done.stderr
    assert "spleen" in done.stdout and "mL" in done.stdout and "HD95" in done.stdout
    done = fedspleen("predict", model, image, "--out", tmp_path / "out")
    assert done.returncode == 2 and "--overwrite" in done.stderr and "Traceback" not in done.stderr


PEAK = "import resource, sys; from fl_app.cli.__main__ import app; app(sys.argv[1:], standalone_mode=False); "
PEAK += "print('peak', resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)"


@pytest.mark.slow
def test_memory_does_not_grow_with_the_volumes_length(tmp_path):
    """Eight times the slices, 18 million voxels more; held in memory as float32 alone they would be 70 MB more."""
    model = write_model(tmp_path / "model.safetensors", text=JOB.replace("[16, 16, 8]", "[32, 32, 32]"))
    peaks = []
    for length in (100, 800):
        volume = np.full((160, 160, length), -1000, np.int16)
        volume[20:140, 30:130] = 40
        path = write_nifti(tmp_path / f"{length}.nii.gz", volume, np.diag([1.5, 1.5, 1, 1]))
        arguments = ["predict", model, path, "--out", tmp_path / "out", "--largest-component", "--device", "cpu"]
        done = subprocess.run(
            [sys.executable, "-c", PEAK, *map(str, arguments)], capture_output=True, text=True, check=True
        )
        peaks.append(int(done.stdout.split()[-1]))
    assert peaks[1] < peaks[0] + 80, peaks
    assert Path(tmp_path / "out" / "800_label.nii.gz").exists()
