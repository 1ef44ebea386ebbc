"""DICOM at the door: CT series in, segmentations in and out. Inside the house everything is arrays and affines."""
