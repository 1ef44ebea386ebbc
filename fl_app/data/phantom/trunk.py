"""The trunk around the abdominal cavity: skin, fat, muscle, bones, diaphragm, lungs and heart."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fl_app.data.phantom.canvas import Box, Canvas, Ellipsoid, Tube
from fl_app.data.phantom.fields import FloatArray

# the inner wall of ribs and muscle: half width, half depth, and the centre's y (mm)
CAVITY_WIDTH, CAVITY_DEPTH, CAVITY_FRONT = 132.0, 88.0, 8.0
SKIN_MM = 2.5
VERTEBRA_MM = 33.0


@dataclass(frozen=True)
class Trunk:
    """One patient's trunk; lengths in mm."""

    fat: float
    fat_front: float
    muscle: float
    right_dome: float
    left_dome: float
    # height of the costal arch in front, and the shifts of the periodic bones
    costal_arch: float
    rib_shift: float
    vertebra_shift: float
    heart: Ellipsoid

    @classmethod
    def draw(cls, random: np.random.Generator, fat_mm: float) -> Trunk:
        """Draws a trunk with this much fat under the skin (mm)."""
        right_dome = random.normal(124, 8)
        return cls(
            fat=fat_mm,
            fat_front=fat_mm * random.uniform(0.5, 1.3),
            muscle=random.uniform(9, 14),
            right_dome=right_dome,
            left_dome=right_dome - random.uniform(4, 20),
            costal_arch=random.normal(40, 12),
            rib_shift=random.uniform(0, 1),
            vertebra_shift=random.uniform(0, 1),
            heart=Ellipsoid((random.normal(-22, 6), random.normal(42, 5), right_dome + 16), (56, 40, 30), (0, 20, 25)),
        )

    def cavity(self, canvas: Canvas) -> tuple[FloatArray, FloatArray]:
        """Returns the position between axis (0) and wall (1), and the signed distance (mm) to the wall."""
        x, y, z = canvas.x, canvas.y - np.float32(CAVITY_FRONT), canvas.z
        # the rib cage narrows upwards, the waist a little downwards
        narrowing = 1 - np.float32(1.4e-5) * (z - 10) ** 2
        across, deep = np.abs(x) / (CAVITY_WIDTH * narrowing), np.abs(y) / CAVITY_DEPTH
        relative = np.power(np.power(across, 2.5) + np.power(deep, 2.5), 1 / 2.5) + np.float32(1e-3)
        return relative, np.asarray(np.hypot(x, y) * (1 - 1 / relative))

    def diaphragm(self, canvas: Canvas, relative: FloatArray) -> FloatArray:
        """Returns the distance (mm) above the diaphragm: positive in the chest."""
        right = 0.5 + 0.5 * np.tanh(canvas.x / 25)
        top = self.left_dome + (self.right_dome - self.left_dome) * right
        top -= 14 * np.exp(-((canvas.x / 24) ** 2))
        lowest = 42 + 0.5 * canvas.y
        # a flat dome with steep sides
        squared = np.minimum(relative, 1.1) ** 2
        height = lowest + (top - lowest) * (1 - squared * squared)
        slope = (top - lowest) * 4 * squared * relative / 105
        return np.asarray((canvas.z - height) / np.sqrt(1 + slope * slope))

    def paint(self, canvas: Canvas, tissue: dict[str, float]) -> None:
        """Paints the trunk and leaves the distance to the abdominal cavity in `canvas.abdomen`."""
        x, y = canvas.x, canvas.y
        relative, wall = self.cavity(canvas)
        above = self.diaphragm(canvas, relative)
        np.maximum(wall, above, out=canvas.abdomen)

        back = np.clip(-(y - 10) / 60, 0, 1)
        front = np.clip((y - 30) / 50, 0, 1)
        muscle = self.muscle + back * 26 / (1 + (x / 82) ** 6) - 3 * front
        skin = muscle + self.fat + (self.fat_front - self.fat) * front + SKIN_MM
        skin -= back * 6 * np.exp(-((x / 14) ** 2))
        rough = canvas.fields["coarse"]
        fine = canvas.fields["fine"]
        fat = tissue["fat"] + 5 * fine
        flesh = tissue["muscle"] + 5 * fine
        canvas.paint(wall - skin, tissue["skin"])
        canvas.paint(wall - skin + SKIN_MM, fat)
        canvas.paint(wall - muscle, flesh)
        # thin sheets of fat part the layers of the wall's muscle, and the muscles of the back
        canvas.paint(np.abs(wall - 0.55 * muscle - 2 * rough) - 0.9, tissue["fat"] * 0.7)
        self._paint_ribs(canvas, wall, tissue)
        # visceral fat with strands, then the chest
        canvas.paint(wall, fat + 14 * np.maximum(fine, 0))
        canvas.paint(np.maximum(wall, -above - 2.5), flesh)
        vessels = np.maximum(fine - 1.3, 0) * 260
        canvas.paint(np.maximum(wall + 1, -above + 1), tissue["lung"] + 25 * rough + vessels)
        middle = Tube(((0, -30, 60), (-4, -24, 240)), (27, 30))
        canvas.paint(np.maximum(middle.distance(canvas), -above), fat + 60)
        chest = canvas.crop(self.heart.box())
        if chest is not None:
            distance = np.maximum(self.heart.distance(chest), 3 - (chest.z - 88) * 0.5)
            chest.paint(distance - 4, tissue["fat"])
            chest.paint(distance, 0.55 * tissue["vein"] + 0.3 * tissue["artery"] + 0.15 * tissue["muscle"])
        self._paint_muscles(canvas, tissue)
        self._paint_spine(canvas, tissue)

    def _paint_ribs(self, canvas: Canvas, wall: FloatArray, tissue: dict[str, float]) -> None:
        """Ribs run obliquely downwards to the front inside the wall; below the costal arch there are none."""
        shell = np.abs(wall - 6) - 4
        forward = np.arctan2(canvas.y + 70, np.abs(canvas.x) + 1)
        phase = (canvas.z + 0.35 * np.abs(canvas.x) + 40 * forward) / 27 + np.float32(self.rib_shift)
        beam = np.abs(phase - np.round(phase)) * 27 - 5.5
        arch = self.costal_arch - 35 + 0.55 * (canvas.y + 70) - canvas.z
        rib = np.maximum(np.maximum(shell, beam), arch)
        # the front ends are cartilage
        cartilage = np.clip((canvas.y - 55) / 12, 0, 1)
        hard = tissue["bone"] + 260
        canvas.paint(rib, hard + (110 - hard) * cartilage)
        canvas.paint(rib + 2.6, tissue["bone"] - 20 + (85 - tissue["bone"]) * cartilage)

    def _paint_muscles(self, canvas: Canvas, tissue: dict[str, float]) -> None:
        """The psoas muscles beside the spine, and the crura of the diaphragm in front of it."""
        for side in (-1, 1):
            psoas = Tube(((side * 24, -52, 15), (side * 40, -44, -60), (side * 52, -30, -200)), (7, 19, 24))
            crus = Tube(((side * 13, -30, -40), (side * 17, -28, 40), (side * 20, -8, 105)), (5, 7, 4))
            loin = Ellipsoid((side * 62, -76, -75), (22, 11, 80))
            for shape in (psoas, crus, loin):
                part = canvas.crop(shape.box())
                if part is not None:
                    part.paint(shape.distance(part), tissue["muscle"] + 5 * part.fields["fine"])

    def _paint_spine(self, canvas: Canvas, tissue: dict[str, float]) -> None:
        """Vertebral bodies with discs between them, the canal, the arch and its processes."""
        part = canvas.crop(Box((-60, -140, -400), (60, -20, 400)))
        if part is None:
            return
        x, y, z = part.x, part.y, part.z
        phase = z / VERTEBRA_MM + np.float32(self.vertebra_shift)
        along = np.abs(phase - np.round(phase)) * VERTEBRA_MM
        waist = 2.2 * np.cos(along * (np.pi / 14))
        body = np.hypot(x * 0.8, y + 54) - 16.5 + waist
        disc = 13.5 - along
        bone = tissue["bone"] + 30 * part.fields["fine"]
        process = np.maximum(np.maximum(np.abs(x) - 3.5, np.abs(y + 102) - 20), along - 9)
        side = np.maximum(np.maximum(np.abs(x) - 40, np.abs(y + 80 - 0.2 * np.abs(x)) - 4.5), along - 5)
        arch = np.hypot(x * 0.85, y + 80) - 15
        part.paint(side, bone + 120)
        part.paint(process, bone + 110)
        part.paint(np.maximum(arch, along - 14), bone + 170)
        part.paint(body, bone + 190)
        part.paint(body + 2.5, bone)
        part.paint(np.maximum(body, -disc - 1), 85)
        part.paint(np.hypot(x * 0.9, y + 80) - 8.5, tissue["brain fluid"])
