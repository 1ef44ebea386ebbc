"""DICOM at the door: the right HU in the right place, and refusals with a reason."""

import shutil
import subprocess

import nibabel
import numpy as np
import pydicom
import pytest
from pydicom.sr.codedict import codes
from pydicom.uid import generate_uid

from fl_app.data.dicom.segmentation import organ_code
from fl_app.data.dicom.series import open_series
from fl_app.errors import DataError
from tests.dicom import SHAPE, SPACING_MM, change_file, make_anatomy, read_seg, write_seg, write_series
from tests.test_predict import run, write_model


def test_a_series_is_read_in_hounsfield_units_and_slice_order(tmp_path):
    series = open_series(write_series(tmp_path / "ct"))
    hu, _ = make_anatomy()
    assert series.shape == SHAPE and series.name == "ct"
    assert np.array_equal(series.read(0, 20), hu)
    assert np.array_equal(series.read(7, 9), hu[:, :, 7:9])


ORIENTATIONS = [(1, 0, 0, 0, 1, 0), (-1, 0, 0, 0, -1, 0), (1, 0, 0, 0, -1, 0), (1, 0, 0, 0, 0, -1), (0, 1, 0, 0, 0, -1)]


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_voxels_lie_where_the_header_says(tmp_path, orientation):
    """The standard's own formula (PS3.3 C.7.6.2.1.1), voxel by voxel, in LPS."""
    folder = write_series(tmp_path / "ct", orientation=orientation)
    series = open_series(folder)
    volume = series.read(0, 20)
    for path in sorted(folder.iterdir())[::6]:
        header = pydicom.dcmread(path)
        row, column = 11, 6
        lps = (
            np.array(header.ImagePositionPatient)
            + column * header.PixelSpacing[1] * np.array(header.ImageOrientationPatient[:3])
            + row * header.PixelSpacing[0] * np.array(header.ImageOrientationPatient[3:])
        )
        voxel = np.rint(np.linalg.solve(series.affine, [-lps[0], -lps[1], lps[2], 1])[:3]).astype(int)
        assert tuple(voxel[:2]) == (column, row)
        assert volume[tuple(voxel)] == header.pixel_array[row, column] * 2 - 1024


def test_the_liver_lies_on_the_patients_right(tmp_path):
    """In RAS, where x grows to the patient's right, y to the front, z to the head."""
    series = open_series(write_series(tmp_path / "ct"))
    hu = series.read(0, 20)

    def centre(mask):
        return nibabel.affines.apply_affine(series.affine, np.argwhere(mask)).mean(0)

    liver, spleen, body = centre(hu == 60), centre(hu == 120), centre(hu > -500)
    assert liver[0] > body[0] + 10 and spleen[0] < body[0] - 10
    assert spleen[1] < body[1] - 5 and spleen[2] > body[2] + 2


def spoil_one(folder, **changes):
    change_file(folder / "007.dcm", **changes)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda folder: (folder / "007.dcm").unlink(), "1 of 20 slices are missing, the first after slice 1;"),
        (lambda folder: [(folder / f"{n:03}.dcm").unlink() for n in (7, 14, 8)], "3 of 20 slices are missing"),
        (lambda folder: shutil.copy(folder / "007.dcm", folder / "x.dcm"), "1 slices lie where another one lies"),
        (lambda folder: spoil_one(folder, ImagePositionPatient=[-40, -30, 505.5]), "not evenly spaced"),
        (lambda folder: spoil_one(folder, RescaleIntercept=None), "no rescale slope and intercept"),
        (lambda folder: spoil_one(folder, ImagePositionPatient=None), "no ImagePositionPatient"),
        (lambda folder: spoil_one(folder, PixelSpacing=[1, 1]), "differ in PixelSpacing"),
        (lambda folder: spoil_one(folder, ImageOrientationPatient=[1, 0, 0, 0, 0, 1]), "differ in ImageOrientation"),
        (lambda folder: spoil_one(folder, Modality="PT"), "its modality is CT, PT"),
        (lambda folder: spoil_one(folder, SeriesInstanceUID=generate_uid()), "2 series .of 19 and 1 files."),
        (
            lambda folder: (folder / "007.dcm").write_bytes((folder / "007.dcm").read_bytes()[:150]),
            "007.dcm is damaged",
        ),
        (lambda folder: [path.unlink() for path in folder.iterdir()], "holds no DICOM files"),
    ],
)
def test_a_series_that_is_no_volume_is_refused_with_the_reason(tmp_path, spoil, words):
    folder = write_series(tmp_path / "ct")
    spoil(folder)
    with pytest.raises(DataError, match=words) as error:
        open_series(folder)
    assert "Doe" not in str(error.value) and "4711" not in str(error.value)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"tilt_mm": 0.5}, r"sheared by 7.1 degrees \(gantry tilt\)"),
        ({"Modality": "MR"}, "its modality is MR, and the model is for CT"),
        ({"Modality": "SEG"}, "holds no images, only SEG"),
        ({"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}, "localisers only"),
        ({"RescaleType": "OD"}, "its values are OD"),
        ({"NumberOfFrames": 4}, "multi-frame"),
        ({"hu": make_anatomy()[0][:, :, :1]}, "only one slice"),
    ],
)
def test_what_is_no_ct_volume_is_refused_with_the_reason(tmp_path, changes, words):
    with pytest.raises(DataError, match=words):
        open_series(write_series(tmp_path / "ct", **changes))


def test_cut_pixels_are_refused_when_they_are_read(tmp_path):
    folder = write_series(tmp_path / "ct")
    (folder / "007.dcm").write_bytes((folder / "007.dcm").read_bytes()[:-1000])
    with pytest.raises(DataError, match=r"007.dcm cannot be decoded"):
        open_series(folder).read(0, 20)


def test_localisers_beside_the_slices_are_left_out(tmp_path):
    folder = write_series(tmp_path / "ct")
    scout = write_series(
        tmp_path / "scout",
        make_anatomy()[0][:, :, :2],
        (1, 0, 0, 0, 0, -1),
        ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"],
    )
    for path in scout.iterdir():
        shutil.copy(path, folder / f"scout{path.name}")
    assert open_series(folder).shape == SHAPE
    # and in the same series
    for path in folder.glob("scout*"):
        change_file(path, SeriesInstanceUID=pydicom.dcmread(folder / "000.dcm").SeriesInstanceUID)
    assert open_series(folder).shape == SHAPE


def test_organs_have_coded_names():
    assert organ_code("spleen") == codes.SCT.Spleen
    assert organ_code("Left kidney") == organ_code("kidney_left") == codes.SCT.Kidney
    assert organ_code("inferior_vena_cava") == codes.SCT.InferiorVenaCava
    assert organ_code("frobnicator") == organ_code("left") == codes.SCT.Organ


def test_a_segmentation_comes_back_with_its_frames_and_geometry(tmp_path):
    folder = write_series(tmp_path / "ct", orientation=(1, 0, 0, 0, -1, 0))
    _, labels = make_anatomy()
    organs, segmentation = read_seg(write_seg(tmp_path / "seg.dcm", folder, labels, ("spleen", "liver")))
    assert organs == ["spleen", "liver"]
    assert segmentation.get_segment_description(1).segmented_property_type == codes.SCT.Spleen
    series = open_series(folder)
    volume = segmentation.get_volume(combine_segments=True)
    lps = np.diag([-1, -1, 1, 1]) @ series.affine
    # highdicom's axes are slice, row, column, and only slices that hold an organ are stored
    for place in np.argwhere(volume.array)[::50]:
        there = np.linalg.solve(lps, volume.affine @ [*place, 1])[:3]
        assert np.abs(there - np.rint(there)).max() < 1e-3
        assert labels[tuple(np.rint(there).astype(int))] == volume.array[tuple(place)]
    assert (volume.array > 0).sum() == (labels > 0).sum()
    # and by pydicom alone: each frame names the slice it lies on
    dataset = pydicom.dcmread(tmp_path / "seg.dcm")
    by_slice = {header.SOPInstanceUID: number for number, header in enumerate(series.headers)}
    for frame, content in zip(dataset.PerFrameFunctionalGroupsSequence, dataset.pixel_array, strict=True):
        segment = frame.SegmentIdentificationSequence[0].ReferencedSegmentNumber
        source = frame.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID
        assert np.array_equal(content.T > 0, labels[:, :, by_slice[source]] == segment)


@pytest.mark.skipif(not shutil.which("segimage2itkimage"), reason="needs 3D Slicer's converter: pip install dcmqi")
@pytest.mark.parametrize("orientation", [(1, 0, 0, 0, 1, 0), (1, 0, 0, 0, -1, 0)])
def test_3d_slicers_converter_reads_a_segmentation(tmp_path, orientation):
    folder = write_series(tmp_path / "ct", orientation=orientation)
    _, labels = make_anatomy()
    path, out = write_seg(tmp_path / "seg.dcm", folder, labels, ("spleen", "liver")), tmp_path / "out"
    out.mkdir()
    command = ["segimage2itkimage", "--inputDICOM", path, "--outputDirectory", out, "--outputType", "nii"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    series = open_series(folder)
    for number in (1, 2):
        image = nibabel.load(out / f"{number}.nii.gz")
        places = np.argwhere(np.asarray(image.dataobj))
        there = nibabel.affines.apply_affine(np.linalg.inv(series.affine) @ image.affine, places)
        assert np.abs(there - np.rint(there)).max() < 1e-3
        assert (labels[tuple(np.rint(there).astype(int).T)] == number).all() and len(there) == (labels == number).sum()


def test_predict_takes_a_series_and_writes_a_segmentation(tmp_path, capsys):
    model = write_model(tmp_path / "model.safetensors")
    folder = write_series(tmp_path / "patient 7")
    series = open_series(folder)
    nibabel.save(nibabel.Nifti1Image(series.read(0, 20), series.affine), tmp_path / "same.nii.gz")
    run(model, [folder, tmp_path / "same.nii.gz"], tmp_path / "out", probabilities=True)
    expected = np.asarray(nibabel.load(tmp_path / "out" / "same_label.nii.gz").dataobj)
    organs, segmentation = read_seg(tmp_path / "out" / "patient 7_seg.dcm")
    assert organs == ["spleen", "liver"]
    uids = [header.SOPInstanceUID for header in series.headers]
    got = segmentation.get_pixels_by_source_instance(
        uids, combine_segments=True, ignore_spatial_locations=True, assert_missing_frames_are_empty=True
    )
    assert np.array_equal(np.array([0, 3, 1])[got.T], expected)
    assert {0, 1, 3} == set(np.unique(expected))
    probability = nibabel.load(tmp_path / "out" / "patient 7_liver_probability.nii.gz")
    same = nibabel.load(tmp_path / "out" / "same_liver_probability.nii.gz")
    assert np.array_equal(probability.affine, same.affine) and np.array_equal(probability.dataobj, same.dataobj)
    assert "patient 7: spleen" in capsys.readouterr().out
    # predicting into the series' own folder does not spoil the series
    run(model, [folder], folder)
    run(model, [folder], folder, overwrite=True)
    assert tuple(np.linalg.norm(series.affine[:3, :3], axis=0).round(6)) == SPACING_MM


def test_a_single_dicom_file_is_no_series(tmp_path):
    model = write_model(tmp_path / "m")
    with pytest.raises(DataError, match=r"000\.dcm is one DICOM file; name the folder"):
        run(model, [write_series(tmp_path / "ct") / "000.dcm"], tmp_path / "out")
