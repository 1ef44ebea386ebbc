"""One case: a patient is drawn, painted block by block and scanned."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from fl_app.data.phantom.canvas import LARGEST_DEFORMATION_MM, Canvas
from fl_app.data.phantom.contrast import draw_tissues
from fl_app.data.phantom.fields import FloatArray, SmoothField
from fl_app.data.phantom.hollow import Bowel, Stomach, Vessels
from fl_app.data.phantom.organs import Kidney, Liver, Spleen
from fl_app.data.phantom.scanner import FieldOfView, scan, stored, table
from fl_app.data.phantom.sites import SiteCharacter
from fl_app.data.phantom.trunk import Trunk

# a block of this many voxels fits a processor's cache, and keeps the memory of a fine matrix small
BLOCK_VOXELS = 120_000


class Patient:
    """All that is random about one patient's body: shapes, tissues, and fields that deform and texture them."""

    def __init__(self, random: np.random.Generator, character: SiteCharacter) -> None:
        self.character = character
        self.scale = float(random.uniform(*character.patient_scale))
        # stature and girth differ a little on their own
        self.stretch = self.scale * random.uniform(0.95, 1.05, 3)
        self.fat_mm = float(random.uniform(*character.fat_mm))
        self.tissues = draw_tissues(random, character.phase)
        self.trunk = Trunk.draw(random, self.fat_mm)
        volume = float(random.uniform(*character.spleen_ml))
        self.spleen = Spleen.draw(random, volume, character.phase == "arterial")
        self.liver = Liver.draw(random)
        self.kidneys = (Kidney.draw(random, -1), Kidney.draw(random, 1))
        drank_contrast = bool(random.random() < character.oral_contrast)
        filling_hu = random.uniform(80, 220) if drank_contrast else random.uniform(5, 60)
        self.stomach = Stomach.draw(random, float(filling_hu))
        self.bowel = Bowel.draw(random, drank_contrast)
        self.vessels = Vessels.draw(random, self.spleen.hilum.points[0])
        self.deformation = tuple(SmoothField(random, 60) for _ in range(3))
        self.deformation_mm = float(random.uniform(3, 5))
        self.textures = {"coarse": SmoothField(random, 20), "fine": SmoothField(random, 8)}

    def paint(
        self, axes: tuple[FloatArray, FloatArray, FloatArray], spacing: tuple[float, float, float]
    ) -> tuple[FloatArray, FloatArray]:
        """Returns HU and the annotator's spleen (0 to 1) on the grid of three axes (mm), shape (x, y, z)."""
        canonical = [np.asarray(axis / factor, np.float32) for axis, factor in zip(axes, self.stretch, strict=True)]
        grid = np.meshgrid(*canonical, indexing="ij")
        shape = grid[0].shape
        limit = np.float32(LARGEST_DEFORMATION_MM)
        x, y, z = (
            place + np.clip(self.deformation_mm * field.on(canonical), -limit, limit)
            for place, field in zip(grid, self.deformation, strict=True)
        )
        canvas = Canvas(
            axes=(canonical[0], canonical[1], canonical[2]),
            x=x,
            y=y,
            z=z,
            hu=np.full(shape, -1000, np.float32),
            label=np.zeros(shape, np.float32),
            abdomen=np.empty(shape, np.float32),
            fields={name: field.on(canonical) for name, field in self.textures.items()},
            softness=max(spacing[0], 0.7 * spacing[2]) / self.scale,
        )
        character, tissues = self.character, self.tissues
        self.trunk.paint(canvas, tissues)
        self.bowel.paint(canvas, tissues)
        self.liver.paint(canvas, tissues)
        self.spleen.paint(canvas, tissues, character.outline_mm, character.includes_hilum)
        for kidney in self.kidneys:
            kidney.paint(canvas, tissues)
        self.stomach.paint(canvas, tissues)
        self.vessels.paint(canvas, tissues, character.includes_hilum)
        return canvas.hu, canvas.label


def make_case(
    character: SiteCharacter, seed: int | Sequence[int], detail: float = 1.0
) -> tuple[NDArray[np.int16], NDArray[np.uint8], NDArray[np.float64]]:
    """Makes one case.

    Returns the image (int16, HU in [-1024, 3071]) and the label (uint8, 0 background, 1 spleen), both of shape
    about (122, 104, 45) x `detail` in the axis order the site stores, and the affine (4, 4) to RAS millimetres.
    The same arguments give the same case; another detail shows the same patient on another matrix.
    """
    random = np.random.default_rng(seed)
    patient = Patient(random, character)
    view = FieldOfView.draw(random, character, patient.scale, patient.fat_mm, detail)
    axes = view.axes()
    hu = np.empty(view.shape, np.float32)
    label = np.empty(view.shape, np.uint8)
    step = max(1, BLOCK_VOXELS // (view.shape[0] * view.shape[1]))
    for start in range(0, view.shape[2], step):
        block = slice(start, start + step)
        hu[:, :, block], spleen = patient.paint((axes[0], axes[1], axes[2][block]), view.spacing)
        label[:, :, block] = spleen > 0.5
    hu += table(axes, -(124 + patient.fat_mm) * patient.scale) * (hu < -900)
    image = scan(hu, view, character, random, detail)
    return stored(image, label, view, character.orientation)
