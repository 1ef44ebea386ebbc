"""CT series, SEG and RTSTRUCT for tests, written from a small asymmetric phantom."""

from pathlib import Path

import highdicom
import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, RTStructureSetStorage, generate_uid

from fl_app.data.dicom.segmentation import write_segmentation
from fl_app.data.dicom.series import open_series

SHAPE = (40, 32, 20)  # columns, rows, slices
SPACING_MM = (2.0, 2.5, 4.0)
PATIENT = "Doe^Jane"


def make_anatomy(shape=SHAPE):
    """HU and labels (column, row, slice) of a supine patient: the liver (2) on the right, the spleen (1) on the left.

    DICOM columns run to the patient's left, rows to the back, slices to the head.
    """
    x, y, z = np.meshgrid(*[np.linspace(-1, 1, size) for size in shape], indexing="ij")
    hu = np.full(shape, -1000, np.int16)
    hu[(x / 0.85) ** 2 + (y / 0.8) ** 2 < 1] = 0
    labels = np.zeros(shape, np.uint8)
    labels[((x + 0.4) / 0.3) ** 2 + (y / 0.5) ** 2 + (z / 0.8) ** 2 < 1] = 2
    labels[((x - 0.5) / 0.2) ** 2 + ((y - 0.3) / 0.2) ** 2 + ((z - 0.2) / 0.5) ** 2 < 1] = 1
    hu[labels == 2], hu[labels == 1] = 60, 120
    return hu, labels


def write_series(folder, hu=None, orientation=(1, 0, 0, 0, 1, 0), tilt_mm=0.0, uid=None, **changes):
    """Write a CT series, one file a slice with names in no order; return the folder.

    Args:
        folder: where to.
        hu: (column, row, slice).
        orientation: direction cosines of rows and columns.
        tilt_mm: each slice's shift against the one before.
        uid: of the series.
        changes: attributes of all slices.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    hu = make_anatomy()[0] if hu is None else hu
    uid, study, frame = uid or generate_uid(), generate_uid(), generate_uid()
    along_x, along_y = np.reshape(np.array(orientation, float), (2, 3))
    normal = np.cross(along_x, along_y)
    for number in range(hu.shape[2]):
        dataset = Dataset()
        dataset.file_meta = FileMetaDataset()
        dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = CTImageStorage
        dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = generate_uid()
        dataset.StudyInstanceUID, dataset.SeriesInstanceUID, dataset.FrameOfReferenceUID = study, uid, frame
        dataset.PatientName, dataset.PatientID, dataset.PatientBirthDate, dataset.PatientSex = PATIENT, "4711", "", ""
        dataset.StudyID = dataset.AccessionNumber = dataset.ReferringPhysicianName = ""
        dataset.StudyDate, dataset.StudyTime, dataset.Manufacturer = "20200102", "", "Doe Scanners"
        dataset.PositionReferenceIndicator = dataset.Laterality = ""
        dataset.Modality, dataset.ImageType = "CT", ["ORIGINAL", "PRIMARY", "AXIAL"]
        dataset.SeriesNumber, dataset.InstanceNumber = 3, hu.shape[2] - number
        dataset.ImageOrientationPatient = [float(value) for value in orientation]
        position = np.array([-40.0, -30, 500]) + normal * SPACING_MM[2] * number + along_y * tilt_mm * number
        dataset.ImagePositionPatient = [round(float(value), 6) for value in position]
        dataset.PixelSpacing, dataset.SliceThickness = [SPACING_MM[1], SPACING_MM[0]], SPACING_MM[2]
        dataset.Rows, dataset.Columns = hu.shape[1], hu.shape[0]
        dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
        dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 16, 15, 0
        dataset.RescaleSlope, dataset.RescaleIntercept, dataset.RescaleType = 2, -1024, "HU"
        dataset.PixelData = ((hu[:, :, number].T.astype(int) + 1024) // 2).astype(np.uint16).tobytes()
        for keyword, value in changes.items():
            if value is None:
                delattr(dataset, keyword)
            else:
                setattr(dataset, keyword, value)
        dataset.save_as(folder / f"{(number * 7) % hu.shape[2]:03}.dcm", enforce_file_format=True)
    return folder


def change_file(path, **changes):
    """Set attributes of one file."""
    dataset = pydicom.dcmread(path)
    for keyword, value in changes.items():
        setattr(dataset, keyword, value)
    dataset.save_as(path)


def write_seg(path, series_folder, labels, organs):
    """Write a SEG of labels (column, row, slice)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_segmentation(path, open_series(series_folder), np.ascontiguousarray(labels.T), organs, "1")
    return path


def write_rtstruct(path, series_folder, contours, kind="CLOSED_PLANAR"):
    """Write an RTSTRUCT; ``contours`` has for each organ a list of (points, 3) in mm, LPS."""
    series = open_series(series_folder)
    first = series.headers[0]
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = RTStructureSetStorage
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    dataset.Modality, dataset.SeriesInstanceUID, dataset.StudyInstanceUID = (
        "RTSTRUCT",
        generate_uid(),
        first.StudyInstanceUID,
    )
    dataset.PatientName = PATIENT
    reference, study, image_series = Dataset(), Dataset(), Dataset()
    reference.FrameOfReferenceUID = first.FrameOfReferenceUID
    image_series.SeriesInstanceUID = first.SeriesInstanceUID
    study.RTReferencedSeriesSequence = [image_series]
    reference.RTReferencedStudySequence = [study]
    dataset.ReferencedFrameOfReferenceSequence = [reference]
    dataset.StructureSetROISequence, dataset.ROIContourSequence = [], []
    for number, (organ, loops) in enumerate(contours.items(), start=1):
        roi, roi_contours = Dataset(), Dataset()
        roi.ROINumber, roi.ROIName, roi.ReferencedFrameOfReferenceUID = number, organ, first.FrameOfReferenceUID
        roi_contours.ReferencedROINumber, roi_contours.ContourSequence = number, []
        for points in loops:
            contour = Dataset()
            contour.ContourGeometricType, contour.NumberOfContourPoints = kind, len(points)
            contour.ContourData = [f"{value:.4f}" for value in np.ravel(points)]
            roi_contours.ContourSequence.append(contour)
        dataset.StructureSetROISequence.append(roi)
        dataset.ROIContourSequence.append(roi_contours)
    path.parent.mkdir(parents=True, exist_ok=True)
    dataset.save_as(path, enforce_file_format=True)
    return path


def read_seg(path):
    """A SEG by highdicom: (segment labels, (slice, row, column, segment) with its geometry)."""
    segmentation = highdicom.seg.segread(path)
    labels = [segmentation.get_segment_description(number).segment_label for number in segmentation.segment_numbers]
    return labels, segmentation
