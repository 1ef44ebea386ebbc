"""Read a NIfTI file completely and critically, once."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import nibabel
import numpy as np
from isal import igzip
from isal.igzip_lib import IsalError
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError
from nibabel.wrapstruct import WrapStructError

from fl_app.data.findings import Finding, error
from fl_app.data.geometry import FloatArray, Volume

# what reading and unpacking raise for a damaged file; isal's stubs call its error an instance
UNREADABLE: tuple[type[Exception], ...] = (OSError, EOFError, cast(type[Exception], IsalError))
_GZIP_MAGIC = b"\x1f\x8b"
# a NIfTI-2 file begins with the size of its header
_NIFTI2_MAGIC = ((540).to_bytes(4, "little"), (540).to_bytes(4, "big"))


@dataclass(frozen=True)
class NiftiVolume:
    """One file's content: voxels (x, y, z) in stored order, affine (4, 4) to RAS+ mm, and the header."""

    voxels: Volume
    affine: FloatArray
    header: nibabel.Nifti1Header


class UnusableFileError(Exception):
    """A file that cannot be read as a volume; carries the finding."""

    def __init__(self, finding: Finding) -> None:
        super().__init__(finding.problem)
        self.finding = finding


@np.errstate(all="ignore")  # a damaged header may hold any number; what comes of it is reported
def read_nifti(path: Path, file: str) -> NiftiVolume:
    """Read every voxel of a .nii or .nii.gz file, check its checksum and its dimensions.

    A fourth dimension of size 1 is dropped, as the training's loader does. Integers stay integers
    unless the header asks for rescaling; then float32 is enough, and half of nibabel's float64.
    Raises UnusableFileError, with the finding, for a file that is unreadable, cut short, or not one
    volume of numbers.

    Args:
        path: the file.
        file: its name in the finding.
    """
    try:
        image = _parse(path)
        finding = _check_kind(image, file)
        if finding:
            raise UnusableFileError(finding)
        rescaled = image.dataobj.slope != 1 or image.dataobj.inter != 0
        voxels = np.asarray(image.dataobj, dtype=np.float32 if rescaled else None).reshape(image.shape[:3], order="F")
        native = voxels.dtype.newbyteorder("=")  # scipy takes nothing else
        return NiftiVolume(voxels.astype(native, copy=False), image.affine, image.header)
    except UNREADABLE as problem:
        reason, remedy = str(problem), "Copy or export the file again and compare checksums."
    except (ImageFileError, HeaderDataError, WrapStructError, ValueError, OverflowError) as problem:
        reason, remedy = f"its content is not valid NIfTI ({problem})", "Export the file again as NIfTI."
    raise UnusableFileError(error("unreadable", file, f"It cannot be read: {reason.rstrip('.')}.", remedy))


def _check_kind(image: nibabel.Nifti1Image, file: str) -> Finding | None:
    """Return why an image is not one three-dimensional volume of numbers."""
    size = " x ".join(map(str, image.shape))
    if len(image.shape) not in (3, 4) or min(image.shape[:3]) < 2 or image.shape[3:] not in ((), (1,)):
        remedy = "Store one volume of three dimensions in each file."
        return error("not-3d", file, f"It is not one 3D volume: its dimensions are {size}.", remedy)
    kind = image.get_data_dtype()
    if kind.kind not in "iuf":
        remedy = "Store the volume as integers or floating point numbers."
        return error("not-numbers", file, f"Its voxels are of type {kind}, not one number each.", remedy)
    return None


def _parse(path: Path) -> nibabel.Nifti1Image:
    """Return the image in a file, whose data is known to be complete.

    The whole file is unpacked at once: faster than nibabel's way, and it verifies the checksum.
    """
    content = path.read_bytes()
    if not content:
        raise EOFError("it is empty (0 bytes)")
    if path.name.lower().endswith(".gz"):
        if not content.startswith(_GZIP_MAGIC):
            raise OSError("it is not compressed with gzip, although its name ends in .gz")
        try:
            content = igzip.decompress(content)
        except EOFError as problem:
            raise EOFError("it is cut short: its compressed data ends too early") from problem
    elif content.startswith(_GZIP_MAGIC):
        raise OSError("it is compressed with gzip, although its name does not end in .gz")
    kind = nibabel.Nifti2Image if content[:4] in _NIFTI2_MAGIC else nibabel.Nifti1Image
    image = kind.from_bytes(content)
    # before nibabel reserves memory for what a damaged header promises
    promised = int(image.dataobj.offset) + math.prod(image.shape) * image.get_data_dtype().itemsize
    if promised > len(content):
        raise EOFError(f"it is cut short: {promised} bytes are announced, {len(content)} are there")
    return image
