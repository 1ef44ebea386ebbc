"""Label maps as DICOM SEG, by highdicom: what a PACS takes and viewers show."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from pathlib import Path

import highdicom
import numpy as np
from highdicom.seg import (
    SegmentAlgorithmTypeValues,
    Segmentation,
    SegmentationTypeValues,
    SegmentDescription,
)
from numpy.typing import NDArray
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code

from fl_app.data.dicom.series import CtSeries
from fl_app.files import replacing

_SIDES = {"left", "right", "l", "r"}


def write_segmentation(
    path: Path, series: CtSeries, labels: NDArray[np.uint8], organs: Sequence[str], version: str
) -> None:
    """Write a label map as a binary DICOM SEG that refers to the series' images.

    It holds the patient and study of the series, as the standard demands: it is for the site's own PACS.

    Args:
        path: the file.
        series: the images.
        labels: (slice, row, column) uint8, organs numbered from 1.
        organs: their names in that order.
        version: of the software, for the file's record.
    """
    algorithm = highdicom.AlgorithmIdentificationSequence(
        name="fedspleen", family=codes.DCM.ArtificialIntelligence, version=version
    )
    segmentation = Segmentation(
        source_images=series.headers,
        pixel_array=labels,
        segmentation_type=SegmentationTypeValues.BINARY,
        segment_descriptions=[
            SegmentDescription(
                segment_number=number,
                segment_label=organ,
                segmented_property_category=codes.cid7150.AnatomicalStructure,
                segmented_property_type=organ_code(organ),
                algorithm_type=SegmentAlgorithmTypeValues.AUTOMATIC,
                algorithm_identification=algorithm,
            )
            for number, organ in enumerate(organs, start=1)
        ],
        series_instance_uid=highdicom.UID(),
        series_number=1000,
        sop_instance_uid=highdicom.UID(),
        instance_number=1,
        manufacturer="fedspleen",
        manufacturer_model_name="fedspleen",
        software_versions=version,
        device_serial_number="none",
        content_label="SEGMENTATION",
        content_creator_name="fedspleen^automatic",
        series_description="fedspleen: automatic segmentation, not for diagnosis",
    )
    with replacing(path) as temporary:
        segmentation.save_as(temporary)


def organ_code(organ: str) -> Code:
    """The SNOMED CT code of an organ by its English name, without its side; "Organ" for names that are unknown."""
    words = [word for word in re.split(r"[\s_-]+", organ.lower()) if word not in _SIDES]
    # any order, as in "gland_adrenal"; more than four words are no organ's name
    for order in itertools.permutations(words) if 0 < len(words) <= 4 else ():
        for spelling in ("".join(map(str.capitalize, order)), "".join(order).capitalize()):
            for keyword in (spelling, spelling.removesuffix("s")):
                code = getattr(codes.SCT, keyword, None)
                if code is not None:
                    return code
    return codes.SCT.Organ
