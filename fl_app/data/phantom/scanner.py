"""The scanner: field of view, blur, noise, the table, and how the array is stored."""

from __future__ import annotations

from dataclasses import dataclass

import nibabel
import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from fl_app.data.phantom.fields import FloatArray
from fl_app.data.phantom.sites import SiteCharacter

# the light matrix: columns and rows; `detail` multiplies it
LIGHT_MATRIX = (122, 104)
FIRST_HU, LAST_HU = -1024, 3071


@dataclass(frozen=True)
class FieldOfView:
    """A grid of voxels in patient millimetres (RAS); the first voxel's centre lies at `origin`."""

    shape: tuple[int, int, int]
    spacing: tuple[float, float, float]
    origin: tuple[float, float, float]

    @classmethod
    def draw(
        cls, random: np.random.Generator, character: SiteCharacter, scale: float, fat_mm: float, detail: float
    ) -> FieldOfView:
        """Draws a field of view around a patient: tight or wide, and with more or less above and below."""
        width = (2 * (132 + 13 + fat_mm) + 8) * scale * random.uniform(1.0, 1.16)
        thickness = random.uniform(*character.slice_mm)
        top, bottom = random.uniform(122, 148) * scale, random.uniform(-95, -25) * scale
        centre = (random.normal(0, 5), -12 * scale + random.normal(0, 4))
        columns, rows = (max(8, round(count * detail)) for count in LIGHT_MATRIX)
        slices = max(8, round((top - bottom) / thickness * detail))
        pixel = round(width / columns, 4)
        slice_spacing = round(thickness / detail, 3)
        return cls(
            shape=(columns, rows, slices),
            spacing=(pixel, pixel, slice_spacing),
            origin=(
                centre[0] - pixel * (columns - 1) / 2,
                centre[1] - pixel * (rows - 1) / 2,
                bottom,
            ),
        )

    def axes(self) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Returns the coordinates (mm) of the voxels' centres along x, y and z."""
        x, y, z = (
            (start + step * np.arange(count)).astype(np.float32)
            for start, step, count in zip(self.origin, self.spacing, self.shape, strict=True)
        )
        return x, y, z


def table(axes: tuple[FloatArray, FloatArray, FloatArray], lowest_y: float) -> FloatArray:
    """Returns the table's HU above air, shape (x, y, 1): a thin curved sheet under the back (mm)."""
    x, y = axes[0][:, None, None], axes[1][None, :, None]
    depth = y - (lowest_y - 9 + 0.0011 * x * x)
    sheet = np.clip(2 - np.abs(depth) / 2, 0, 1) * 1000
    foam = np.clip((depth + 40) / 4, 0, 1) * np.clip(-depth / 4, 0, 1) * 70
    return np.asarray(np.maximum(sheet, foam) * (np.abs(x) < 215), np.float32)


def scan(
    hu: FloatArray, view: FieldOfView, character: SiteCharacter, random: np.random.Generator, detail: float
) -> NDArray[np.int16]:
    """Blurs the true HU, adds the noise of kernel and dose, and stores them as int16 in [-1024, 3071]."""
    spacing = np.asarray(view.spacing)
    image = gaussian_filter(hu, character.blur_mm / spacing * (1, 1, 0.6), truncate=3)
    if character.sharpening:
        softer = gaussian_filter(image, 2.2 / spacing * (1, 1, 0), truncate=3)
        image += character.sharpening * (image - softer)
    noise = random.standard_normal(view.shape, dtype=np.float32)
    noise = gaussian_filter(noise, character.grain_mm / spacing * (1, 1, 0.3), truncate=3)
    noise *= character.noise_hu * np.sqrt(detail) * random.uniform(0.8, 1.25) / noise[::3, ::3, ::3].std()
    # the middle of the body is seen through more tissue, and air outside it is quiet
    x, y = (axis / 190 for axis in view.axes()[:2])
    depth = 0.55 + 0.65 * np.exp(-(x[:, None] ** 2 + (1.5 * y[None, :]) ** 2))
    noise *= depth[:, :, None]
    noise *= np.where(hu < -985, np.float32(0.3), np.float32(1))
    image += noise
    return np.asarray(np.clip(np.rint(image), FIRST_HU, LAST_HU), np.int16)


def stored(
    image: NDArray[np.int16], label: NDArray[np.uint8], view: FieldOfView, orientation: str
) -> tuple[NDArray[np.int16], NDArray[np.uint8], NDArray[np.float64]]:
    """Returns RAS arrays turned to the orientation a site stores, and the affine (4, 4) that says so."""
    affine = np.diag((*view.spacing, 1.0))
    affine[:3, 3] = view.origin
    wanted = nibabel.orientations.axcodes2ornt(tuple(orientation))
    change = nibabel.orientations.ornt_transform(nibabel.orientations.io_orientation(affine), wanted)
    affine = affine @ nibabel.orientations.inv_ornt_aff(change, view.shape)
    image = nibabel.orientations.apply_orientation(image, change)
    label = nibabel.orientations.apply_orientation(label, change)
    return np.ascontiguousarray(image), np.ascontiguousarray(label), affine
