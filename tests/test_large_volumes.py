"""Volumes larger than memory: zarr in and out, tiles in bounded memory, tiles spread over Dask's workers."""

import subprocess
import sys

import nibabel
import numpy as np
import pytest
import zarr

from fl_app.errors import DataError, UsageError
from tests.federation import fedspleen
from tests.test_predict import JOB, model, run, turned, write_model, write_scan

__all__ = ["model"]  # a fixture


def as_zarr(path, nifti, chunks=(7, 9, 5), **attributes):
    image = nibabel.load(nifti)
    array = zarr.create(shape=image.shape, chunks=chunks, dtype="int16", store=str(path))
    array[:] = np.asarray(image.dataobj)
    array.attrs.update(attributes or {"affine": image.affine.tolist()})
    return path


def test_a_zarr_array_is_predicted_as_the_nifti_file_of_the_same_voxels(tmp_path, model):
    image, _ = write_scan(tmp_path / "ct.nii.gz", turned((12, -8, 20), signs=(-1, -1, 1)))
    run(model, [image], tmp_path / "nifti")
    array = as_zarr(tmp_path / "ct.zarr", image)
    for _ in range(2):
        run(model, [array], tmp_path / "zarr", overwrite=True)
    expected = nibabel.load(tmp_path / "nifti" / "ct_label.nii.gz")
    found = zarr.open(str(tmp_path / "zarr" / "ct_label.zarr"), mode="r")
    assert np.array_equal(found[:], np.asarray(expected.dataobj)) and len(np.unique(found[:])) == 3
    assert np.array_equal(found.attrs["affine"], nibabel.load(image).affine)
    assert {path.name for path in (tmp_path / "zarr").iterdir()} == {"ct_label.zarr", "volumes.csv"}


def test_wrong_arrays_end_in_one_sentence(tmp_path, model):
    image, _ = write_scan(tmp_path / "ct.nii.gz")
    (tmp_path / "empty.zarr").mkdir()
    zarr.open_group(str(tmp_path / "group.zarr"), mode="w")
    flat = zarr.create(shape=(4, 4), chunks=(4, 4), dtype="int16", store=str(tmp_path / "flat.zarr"))
    flat.attrs["affine"] = np.eye(4).tolist()
    for path, words in (
        (as_zarr(tmp_path / "lost.zarr", image, note="no geometry"), "no attribute affine, so nobody knows"),
        (as_zarr(tmp_path / "odd.zarr", image, affine=[1, 2]), "affine is not 4 x 4 numbers"),
        (as_zarr(tmp_path / "text.zarr", image, affine="LPS"), "affine is not 4 x 4 numbers"),
        (as_zarr(tmp_path / "flat-affine.zarr", image, affine=np.zeros((4, 4)).tolist()), "maps several voxels"),
        (tmp_path / "flat.zarr", "not one 3D array"),
        (tmp_path / "group.zarr", "is a zarr group"),
        (tmp_path / "empty.zarr", "cannot be read as zarr"),
    ):
        with pytest.raises(DataError, match=words) as error:
            run(model, [path], tmp_path / "out")
        assert "\n" not in str(error.value)


LIMITED = """
import resource, sys
from fl_app.cli.__main__ import app
import fl_app.prediction.session, fl_app.training.windows
now = int(next(line for line in open("/proc/self/status") if line.startswith("VmData")).split()[1]) * 1024
resource.setrlimit(resource.RLIMIT_DATA, (now + {limit}, now + {limit}))
fl_app.training.windows.TILE_BYTES = {tile}
app(sys.argv[1:], standalone_mode=False)
"""


@pytest.mark.slow
def test_a_wide_volume_is_predicted_within_a_hard_limit_of_memory(tmp_path):
    """A row of windows across the whole slice takes 9 classes and a norm x 32 planes of 500 x 500: 320 MB."""
    organs = ", ".join(f"o{number}: {number}" for number in range(1, 9))
    text = JOB.replace("{spleen: 3, liver: 1}", f"{{{organs}}}").replace("[16, 16, 8]", "[32, 32, 32]")
    model = write_model(
        tmp_path / "model.safetensors",
        text=text.replace("channels: [4, 8]", "channels: [2, 4]") + "evaluation: {overlap: 0}",
    )
    volume = np.full((500, 500, 8), -1000, np.int16)
    volume[10:490, 10:490] = 40
    path = write_nifti_plain(tmp_path / "wide.nii", volume, np.diag([4.0, 4, 5, 1]))
    arguments = ["predict", model, path, "--out", tmp_path / "out", "--device", "cpu"]
    for tile, works in ((20 * 10**6, True), (10**10, False)):
        code = LIMITED.format(limit=250 * 10**6, tile=tile)
        done = subprocess.run(
            [sys.executable, "-c", code, *map(str, arguments), "--overwrite"],
            capture_output=True,
            text=True,
            check=False,
        )
        assert (done.returncode == 0) is works, done.stderr[-2000:]


def write_nifti_plain(path, volume, affine):
    nibabel.save(nibabel.Nifti1Image(volume, affine), path)
    return path


@pytest.mark.slow
def test_workers_of_dask_give_the_result_of_one_process(tmp_path):
    model = write_model(tmp_path / "model.safetensors")
    image, _ = write_scan(tmp_path / "ct.nii.gz", size=3)
    run(model, [image], tmp_path / "alone", probabilities=True)
    shared = tmp_path / "shared"
    done = fedspleen("predict", model, image, "--out", shared, "--probabilities", "--workers", "2")
    assert done.returncode == 0, done.stderr
    for name in ("ct_label", "ct_spleen_probability", "ct_liver_probability"):
        one, other = (
            np.asarray(nibabel.load(tmp_path / folder / f"{name}.nii.gz").dataobj, np.float32)
            for folder in ("alone", "shared")
        )
        assert np.abs(one - other).max() < 1e-4
    assert {path.name for path in (tmp_path / "shared").iterdir()} == {
        path.name for path in (tmp_path / "alone").iterdir()
    }


def test_workers_and_slurm_exclude_each_other(tmp_path, model):
    with pytest.raises(UsageError, match="choose one"):
        run(model, [tmp_path], tmp_path / "out", workers=2, slurm=tmp_path / "slurm.yaml")
