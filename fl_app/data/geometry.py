"""Where voxels lie in the patient: spacing, orientation and side. World space is RAS+ in mm, as in NIfTI."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from nibabel.orientations import aff2axcodes
from numpy.typing import NDArray

from fl_app.data.findings import Finding, error, warning

FloatArray = NDArray[np.floating[Any]]
Volume = NDArray[Any]

_SPACING_MM = (0.1, 20.0)  # outside, no CT is
_MOST_OBLIQUE_DEGREES = 10.0
_MOST_SHEARED_DEGREES = 0.5
_BODY_HU = -300
_RECONVERT = "Convert the case again from DICOM, for example with dcm2niix."


def spacing_mm(affine: FloatArray) -> FloatArray:
    """Return the size of a voxel along each array axis, (3,), mm."""
    with np.errstate(over="ignore"):  # a damaged header may hold 1e300
        spacing: FloatArray = np.linalg.norm(affine[:3, :3], axis=0)
    return spacing


def is_usable(affine: FloatArray) -> bool:
    """Return whether an affine (4, 4) is finite and maps the three array axes to three directions."""
    if not np.isfinite(affine).all():
        return False
    spacing = spacing_mm(affine)
    if not np.isfinite(spacing).all() or spacing.min() == 0:
        return False
    return bool(abs(np.linalg.det(affine[:3, :3] / spacing)) > 1e-3)


def check_geometry(file: str, header: Mapping[str, Any], affine: FloatArray) -> Iterator[Finding]:
    """Yield what is wrong with the spacing and the orientation of a volume.

    Args:
        file: the name to report.
        header: the NIfTI header.
        affine: (4, 4), voxel to mm, as nibabel chooses it: sform, else qform, else spacing alone.
    """
    if not is_usable(affine):
        yield error("bad-affine", file, "The affine is not finite or maps several voxels to one place.", _RECONVERT)
        return
    if int(header["sform_code"]) == 0 and int(header["qform_code"]) == 0:
        stored = np.asarray(header["pixdim"][1:4])
        if np.isin(stored, (0, 1)).all():
            yield error("no-spacing", file, "The file holds neither voxel spacing nor orientation.", _RECONVERT)
            return
        yield warning(
            "no-orientation",
            file,
            "The file holds voxel spacing but no orientation (sform and qform codes are 0); "
            "left and right are guessed.",
            _RECONVERT,
        )
    spacing = spacing_mm(affine)
    if spacing.min() <= _SPACING_MM[0] or spacing.max() > _SPACING_MM[1]:
        yield error(
            "absurd-spacing",
            file,
            f"The voxel spacing is {_show(spacing)} mm; more than {_SPACING_MM[0]:g} and at most "
            f"{_SPACING_MM[1]:g} mm is plausible.",
            "Correct the spacing in the header (mm, not m or µm), or convert again.",
        )
    yield from _check_axes(file, affine[:3, :3] / spacing)


def _check_axes(file: str, axes: FloatArray) -> Iterator[Finding]:
    """Yield warnings for array axes (unit columns) that are not square to each other or to the patient."""
    cosines = np.abs(axes.T @ axes - np.eye(3)).max()
    shear = float(np.degrees(np.arcsin(min(cosines, 1.0))))
    tilt = float(np.degrees(np.arccos(min(np.abs(axes).max(axis=0).min(), 1.0))))
    if shear > _MOST_SHEARED_DEGREES:
        yield warning(
            "sheared",
            file,
            f"The slices are sheared by {shear:.1f} degrees (gantry tilt).",
            "Resample the case onto a straight grid, for example with dcm2niix, which corrects gantry tilt.",
        )
    elif tilt > _MOST_OBLIQUE_DEGREES:
        yield warning(
            "oblique",
            file,
            f"The grid is rotated by {tilt:.1f} degrees against the patient's axes.",
            "Check the orientation in a viewer; resample onto straight axes if the rotation is wrong.",
        )


@np.errstate(over="ignore")
def affine_difference(image: FloatArray, label: FloatArray, shape: tuple[int, ...]) -> str | None:
    """Return in words how a label's affine differs from its image's; None where they agree.

    They agree within 1/1000 of the spacing and 0.01 mm of position.
    """
    if not (np.isfinite(image).all() and np.isfinite(label).all()):
        return "one of the two affines is not finite"
    step = np.abs(image[:3, :3] - label[:3, :3]).max(axis=0)
    if (step <= 1e-3 * spacing_mm(image)).all() and np.abs(image[:3, 3] - label[:3, 3]).max() <= 0.01:
        return None
    corners = np.array(np.meshgrid(*[(0, size - 1) for size in shape], (1,))).reshape(4, -1)
    distance = np.linalg.norm(((image - label) @ corners)[:3], axis=0).max()
    differences = [f"the label lies up to {distance:.3g} mm away from the image"]
    if not np.allclose(spacing_mm(image), spacing_mm(label), rtol=1e-3):
        differences.append(f"spacing {_show(spacing_mm(image))} mm against {_show(spacing_mm(label))} mm")
    if is_usable(image) and is_usable(label) and aff2axcodes(image) != aff2axcodes(label):
        differences.append(f"orientation {orientation(image)} against {orientation(label)}")
    return "; ".join(differences)


def orientation(affine: FloatArray) -> str:
    """Return where the array axes point, such as "RAS": right, anterior, superior."""
    return "".join(code or "?" for code in aff2axcodes(affine))


def body_extent(image: Volume, affine: FloatArray) -> tuple[float, float] | None:
    """Return the body's middle and half its width along left-right, mm; None without a body.

    The body is what is denser than -300 HU; every fourth voxel along each axis is exact enough.
    """
    step = tuple(max(1, min(4, size // 8)) for size in image.shape)
    body = image[:: step[0], :: step[1], :: step[2]] > _BODY_HU
    if not body.any():
        return None
    middle = _world_x(body, affine @ np.diag([*step, 1.0]))
    across = int(np.abs(affine[0, :3]).argmax())
    filled = np.flatnonzero(_profile(body, across))
    width = (filled[-1] - filled[0] + 1) * step[across] * abs(affine[0, across])
    return middle, float(width) / 2


def side_of(organ: NDArray[np.bool_], start: Sequence[int], affine: FloatArray, body: tuple[float, float]) -> float:
    """Return how far an organ's centroid lies from the body's middle: -1 is the left skin, 1 the right.

    Args:
        organ: (x, y, z), a box of the whole volume.
        start: the first voxel of the box.
        affine: (4, 4) of the whole volume.
        body: what `body_extent` returned.
    """
    middle, half_width = body
    offset = float(affine[0, :3] @ np.asarray(start))
    return (_world_x(organ, affine) + offset - middle) / half_width


def _world_x(mask: NDArray[np.bool_], affine: FloatArray) -> float:
    """Return the left-right coordinate (mm, right is positive) of a mask's centroid."""
    x = float(affine[0, 3])
    for axis in range(3):
        profile = _profile(mask, axis)
        x += float(affine[0, axis]) * float(profile @ np.arange(len(profile)) / profile.sum())
    return x


def _profile(mask: NDArray[np.bool_], axis: int) -> NDArray[np.int64]:
    """Return the number of voxels in each plane along one axis."""
    counts: NDArray[np.int64] = mask.sum(axis=tuple({0, 1, 2} - {axis}), dtype=np.int64)
    return counts


def _show(spacing: FloatArray) -> str:
    return " x ".join(f"{size:.4g}" for size in spacing)
