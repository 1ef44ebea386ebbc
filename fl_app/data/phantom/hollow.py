"""Stomach, bowel, pancreas and the great vessels: what lies between the solid organs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fl_app.data.phantom.canvas import Canvas, Ellipsoid, Point, Tube, moved, scaled
from fl_app.data.phantom.organs import Tissues, jitter, wander

AIR_HU = -980.0


@dataclass(frozen=True)
class Stomach:
    """The stomach: its filling sinks to the back and air stays in front, as the patient lies on the back."""

    fundus: Ellipsoid
    body: Tube
    fluid_level: float
    filling_hu: float
    lumps_hu: float

    @classmethod
    def draw(cls, random: np.random.Generator, filling_hu: float) -> Stomach:
        """Draws a stomach, empty or full; `filling_hu` is what it holds."""
        size = random.uniform(0.65, 1.15)
        fundus = jitter(random, (-48, 20, 82), 6)
        middle = jitter(random, (-46, 42, 38), 6)
        return cls(
            fundus=Ellipsoid(fundus, scaled((36, 33, 34), size), (20, 0, 15)),
            body=Tube(
                (fundus, middle, jitter(random, (-10, 58, 12), 6), jitter(random, (26, 40, 18), 5)),
                (30 * size, 26 * size, 21 * size, 12),
            ),
            fluid_level=fundus[1] + random.uniform(-25, 45),
            filling_hu=filling_hu,
            lumps_hu=random.uniform(5, 40),
        )

    def paint(self, canvas: Canvas, tissue: Tissues) -> None:
        """Paints wall, filling and air."""
        part = canvas.crop(self.body.box(8).joined(self.fundus.box(8)))
        if part is None:
            return
        distance = np.minimum(self.fundus.distance(part), self.body.distance(part, 12))
        distance = np.maximum(distance - 3 * part.fields["coarse"], part.abdomen + 3)
        part.paint(distance, tissue["bowel wall"] + 6 * part.fields["fine"])
        folds = 4 + 1.5 * part.fields["fine"]
        part.paint(distance + folds, self.filling_hu + self.lumps_hu * part.fields["fine"])
        air = np.maximum(distance + folds, self.fluid_level - part.y + 1.5 * part.fields["coarse"])
        part.paint(air, AIR_HU)


@dataclass(frozen=True)
class Bowel:
    """Colon with stool and gas, and loops of small bowel."""

    colon: Tube
    loops: tuple[Tube, ...]
    loop_fillings_hu: tuple[float, ...]
    stool_hu: float
    gas: float

    @classmethod
    def draw(cls, random: np.random.Generator, oral_contrast: bool) -> Bowel:
        """Draws the bowel; loops hold fluid, or a positive contrast agent the patient drank."""
        loops = [
            # jejunum under the stomach, beside the spleen's lower pole
            wander(random, jitter(random, (-70, 10, 16), 8), (-105, -18, -60), (-20, 62, 30), 14),
            wander(random, jitter(random, (-50, 25, -20), 8), (-100, -18, -110), (20, 80, 8), 18),
            wander(random, jitter(random, (-30, 40, -70), 8), (-100, -18, -170), (40, 80, -20), 18),
            wander(random, jitter(random, (40, 35, -40), 8), (-30, -18, -110), (92, 80, -12), 16),
            # duodenum, beside the head of the pancreas
            ((30, 42, 16), (50, 14, 8), (46, -2, -34), (0, -2, -42), (-30, 10, -8)),
        ]
        right, flexure = jitter(random, (94, -8, -60), 6), jitter(random, (-98, 2, 4), 8)
        points = (
            (96, -14, -190), right, jitter(random, (84, 38, -22), 6), jitter(random, (30, 68, -18), 8),
            jitter(random, (-40, 66, 0), 8), jitter(random, (-88, 46, 10), 8), flexure,
            jitter(random, (-106, -24, -45), 4), (-106, -24, -190),
        )  # fmt: skip
        return cls(
            colon=Tube(points, tuple(random.uniform(14, 22, len(points)))),
            loops=tuple(Tube(points, tuple(random.uniform(9, 14, len(points)))) for points in loops),
            loop_fillings_hu=tuple(
                random.uniform(*((90, 260) if oral_contrast and random.random() < 0.6 else (8, 50))) for _ in loops
            ),
            stool_hu=random.uniform(-40, 45),
            gas=random.uniform(0.2, 1.0),
        )

    def paint(self, canvas: Canvas, tissue: Tissues) -> None:
        """Paints the loops of small bowel, then the colon."""
        for loop, filling in zip(self.loops, self.loop_fillings_hu, strict=True):
            part = canvas.crop(loop.box(6))
            if part is not None:
                distance = np.maximum(loop.distance(part, 4), part.abdomen + 3)
                part.paint(distance, tissue["bowel wall"])
                part.paint(distance + 2.5 + part.fields["fine"], filling + 10 * part.fields["fine"])
        part = canvas.crop(self.colon.box(6))
        if part is None:
            return
        # the haustra: the colon is not a smooth tube
        distance = self.colon.distance(part, 6) + 2.5 * part.fields["coarse"]
        distance = np.maximum(distance, part.abdomen + 2)
        part.paint(distance, tissue["bowel wall"])
        part.paint(distance + 3, self.stool_hu + 45 * part.fields["fine"])
        bubbles = (1.1 - self.gas * 1.2 - part.fields["coarse"] - 0.03 * (part.y - 20)) * 9
        part.paint(np.maximum(distance + 3.5, bubbles), AIR_HU)


@dataclass(frozen=True)
class Vessels:
    """Aorta, inferior caval, portal and splenic vessels, and the pancreas along them."""

    aorta: Tube
    caval: Tube
    portal: Tube
    splenic_vein: Tube
    splenic_artery: Tube
    mesenteric: tuple[Tube, ...]
    pancreas: Tube

    @classmethod
    def draw(cls, random: np.random.Generator, hilum: Point) -> Vessels:
        """Draws vessels whose splenic branches end at the spleen's hilum (mm)."""
        root = jitter(random, (14, -6, 18), 3)
        bend = jitter(random, (-34, -12, 34), 5)
        gate = moved(hilum, 8, 2, -3)
        twist = jitter(random, (-20, -10, 46), 6)
        return cls(
            aorta=Tube(((-4, -30, -200), (-5, -28, 0), (-8, -30, 110), (-14, -34, 260)), (9, 10, 11.5, 12)),
            caval=Tube(((20, -27, -200), (22, -25, 20), (26, -8, 90), (24, 2, 150)), (11, 12, 12, 13)),
            portal=Tube((root, jitter(random, (30, 4, 44), 3), jitter(random, (52, 6, 58), 4)), (6.5, 7, 5)),
            splenic_vein=Tube((root, bend, gate, moved(hilum, -5, 0, 6)), (5.0, 4.5, 4.2, 3.0)),
            splenic_artery=Tube(((-5, -20, 38), twist, bend, moved(gate, 0, 5, 6), hilum), (3.5, 3, 3, 2.8, 2)),
            mesenteric=(
                Tube(((-5, -20, 26), (-3, 4, 0), (0, 16, -160)), (4, 3.8, 3)),
                Tube((root, (12, 14, -10), (12, 22, -160)), (5.5, 5, 4)),
            ),
            pancreas=Tube(
                (jitter(random, (36, 12, -4), 4), (24, 16, 14), (-8, 8, 24), bend, gate), (14, 12, 8, 9.5, 8)
            ),
        )

    def paint(self, canvas: Canvas, tissue: Tissues, hilum_is_spleen: bool) -> None:
        """Paints the pancreas and the vessels; at the hilum the annotators may count them as spleen."""
        part = canvas.crop(self.pancreas.box(6))
        if part is not None:
            distance = self.pancreas.distance(part, 5) - 1.5 - 2.5 * part.fields["fine"]
            part.paint(np.maximum(distance, part.abdomen + 3), tissue["pancreas"] + 6 * part.fields["fine"])
        artery, vein = tissue["artery"], tissue["vein"]
        for tube, hu, erases in (
            (self.aorta, artery, True),
            (self.caval, 0.6 * vein + 0.4 * tissue["kidney medulla"], True),
            (self.portal, vein, True),
            (self.mesenteric[0], artery, True),
            (self.mesenteric[1], vein, True),
            (self.splenic_vein, vein, not hilum_is_spleen),
            (self.splenic_artery, artery, not hilum_is_spleen),
        ):
            part = canvas.crop(tube.box())
            if part is not None:
                part.paint(tube.distance(part), hu, erases)
