"""The organs of the upper abdomen; each is drawn once for a patient and then painted block by block."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fl_app.data.phantom.canvas import Canvas, Ellipsoid, Point, Tube, as_point, moved, scaled

Tissues = dict[str, float]


def jitter(random: np.random.Generator, centre: Point, deviation_mm: float) -> Point:
    """Moves a point by a normal step in each direction."""
    return as_point(np.asarray(centre) + random.normal(0, deviation_mm, 3))


def wander(random: np.random.Generator, start: Point, lowest: Point, highest: Point, steps: int) -> tuple[Point, ...]:
    """Returns the points of a loop that wanders inside a box (mm)."""
    points = [np.asarray(start, float)]
    heading = random.standard_normal(3)
    for _ in range(steps):
        heading = 0.55 * heading + random.standard_normal(3)
        heading *= 24 / np.linalg.norm(heading)
        following = points[-1] + heading
        heading[(following < lowest) | (following > highest)] *= -1
        points.append(np.clip(points[-1] + heading, lowest, highest))
    return tuple(as_point(point) for point in points)


@dataclass(frozen=True)
class Spleen:
    """The spleen under the left dome, along the ribs; its size as a factor on the lengths of a 250 mL spleen."""

    body: Ellipsoid
    tail: Ellipsoid
    hilum: Tube
    notches: tuple[Ellipsoid, ...]
    lobulation_mm: float
    mottle_hu: float
    mottle_shift: float

    @classmethod
    def draw(cls, random: np.random.Generator, volume_ml: float, arterial: bool) -> Spleen:
        """Draws a spleen of about this volume in canonical space."""
        size = (volume_ml / 250) ** (1 / 3)
        thick, deep, high = as_point(np.asarray((37, 60, 62)) * size * random.uniform(0.9, 1.12, 3))
        centre = jitter(random, (-123 + 30 * size, -54 + 18 * size, 62 - 5 * size), 4)
        tilts = (random.normal(24, 8), random.normal(-8, 6), random.normal(-14, 8))
        inner = moved(centre, thick * 1.05, random.normal(8, 5), random.normal(-2, 5))
        notches = tuple(
            Ellipsoid(
                moved(centre, random.normal(0, 8), deep * random.uniform(0.75, 0.95), random.normal(0, 22)),
                (30, random.uniform(9, 20), random.uniform(2.5, 5)),
                (random.normal(0, 25), 0, random.normal(0, 20)),
            )
            for _ in range(random.integers(0, 4))
        )
        return cls(
            body=Ellipsoid(centre, (thick, deep, high), tilts),
            tail=Ellipsoid(
                moved(centre, 4 * size, 14 * size, -high * random.uniform(0.4, 0.65)),
                (thick * 0.7, deep * 0.6, high * 0.5),
                tilts,
            ),
            hilum=Tube((inner, moved(inner, 45, 20, 0)), (random.uniform(9, 15) * size, 22 * size)),
            notches=notches,
            lobulation_mm=random.uniform(1.5, 4.0),
            mottle_hu=random.uniform(20, 40) if arterial else 0.0,
            mottle_shift=random.uniform(0, 6),
        )

    def paint(self, canvas: Canvas, tissue: Tissues, outline_mm: float, includes_hilum: bool) -> None:
        """Paints the spleen and its annotation, whose outline lies `outline_mm` outside the edge."""
        part = canvas.crop(self.body.box(8).joined(self.tail.box(8)))
        if part is None:
            return
        body, tail = self.body.distance(part), self.tail.distance(part)
        # a soft minimum joins the two without a crease
        blend = np.clip(0.5 + (tail - body) / 24, 0, 1)
        solid = tail + (body - tail) * blend - 12 * blend * (1 - blend)
        solid -= self.lobulation_mm * part.fields["coarse"]
        for notch in self.notches:
            np.maximum(solid, -notch.distance(part), out=solid)
        solid = np.maximum(solid, part.abdomen + 2.5)
        hilum = self.hilum.distance(part, 30)
        organ = np.maximum(solid, -hilum)
        grain = 4 * part.fields["fine"] + 3 * part.fields["coarse"]
        if self.mottle_hu:
            # early arterial blood runs through the red pulp in winding bands
            bands = np.sin(part.x * 0.13 + part.z * 0.17 + 2.2 * part.fields["coarse"] + self.mottle_shift)
            grain = grain + self.mottle_hu * bands
        part.paint(organ, tissue["spleen"] + grain)
        annotated = np.maximum(solid, -hilum - 9) if includes_hilum else organ
        part.annotate(annotated - outline_mm)


@dataclass(frozen=True)
class Liver:
    """The liver under the right dome, with its left lobe, its vessels and the gallbladder."""

    lobes: tuple[Ellipsoid, ...]
    vessels: tuple[Tube, ...]
    gallbladder: Ellipsoid

    @classmethod
    def draw(cls, random: np.random.Generator) -> Liver:
        """Draws a liver of about 1.5 L; in some patients the left lobe reaches the spleen."""
        size = random.uniform(0.9, 1.1)
        reach = random.uniform(52, 98)
        right = jitter(random, (66, 2, 62), 5)
        vessels = []
        for _ in range(7):
            start = jitter(random, (28, 8, 50), 6)
            middle = jitter(random, moved(start, 22, 6, 14), 18)
            vessels.append(Tube((start, middle, jitter(random, moved(middle, 18, 0, 6), 20)), (4.2, 3.0, 1.2)))
        return cls(
            lobes=(
                Ellipsoid(right, scaled((74, 84, 84), size), (0, random.normal(24, 6), random.normal(0, 8))),
                Ellipsoid((8, 50, 82), scaled((reach, 42, 32), size), (0, random.normal(10, 6), 14)),
            ),
            vessels=tuple(vessels),
            gallbladder=Ellipsoid(
                jitter(random, (52, 46, 6), 6),
                (random.uniform(9, 15), 15, random.uniform(16, 28)),
                (20, 0, 0),
            ),
        )

    def paint(self, canvas: Canvas, tissue: Tissues) -> None:
        """Paints the liver, its vessels and the gallbladder."""
        for lobe in self.lobes:
            part = canvas.crop(lobe.box(8))
            if part is not None:
                distance = lobe.distance(part) - 3 * part.fields["coarse"]
                hu = tissue["liver"] + 4 * part.fields["fine"] + 2 * part.fields["coarse"]
                part.paint(np.maximum(distance, part.abdomen + 2), hu)
        for vessel in self.vessels:
            part = canvas.crop(vessel.box())
            if part is not None:
                part.paint(vessel.distance(part), 0.35 * tissue["liver"] + 0.65 * tissue["vein"])
        part = canvas.crop(self.gallbladder.box())
        if part is not None:
            distance = np.maximum(self.gallbladder.distance(part), part.abdomen + 3)
            part.paint(distance, tissue["liver"] * 0.5 + 20)
            part.paint(distance + 2, tissue["gallbladder"])


@dataclass(frozen=True)
class Kidney:
    """A kidney with cortex, medulla and the fat of its sinus, and the adrenal gland above."""

    body: Ellipsoid
    # fat around the kidney: thin where it touches the spleen
    capsule_mm: float
    sinus: Ellipsoid
    adrenal: Tube

    @classmethod
    def draw(cls, random: np.random.Generator, side: int) -> Kidney:
        """Draws the left (-1) or the right (+1) kidney."""
        size = random.uniform(0.88, 1.12)
        centre = jitter(random, (side * 60, -46, 2 if side < 0 else -18), 5)
        tilts = (random.normal(-12, 5), random.normal(-side * 12, 4), random.normal(side * 25, 8))
        top = moved(centre, -side * 18, 8, 50 * size)
        return cls(
            body=Ellipsoid(centre, scaled((29, 25, 55), size), tilts),
            capsule_mm=random.uniform(0.5, 4.0),
            sinus=Ellipsoid(moved(centre, -side * 11, 5, 0), (16 * size, 9, 24 * size), tilts),
            adrenal=Tube((moved(top, 0, -14, -10), top, moved(top, -side * 5, 12, -8)), (2.5, 3.5, 2.5)),
        )

    def paint(self, canvas: Canvas, tissue: Tissues) -> None:
        """Paints the kidney inside its capsule of fat."""
        part = canvas.crop(self.adrenal.box())
        if part is not None:
            part.paint(self.adrenal.distance(part), tissue["muscle"] + 15)
        part = canvas.crop(self.body.box(3))
        if part is None:
            return
        distance = np.maximum(self.body.distance(part), part.abdomen + 1.5) - part.fields["coarse"]
        part.paint(distance - self.capsule_mm, tissue["fat"] * 0.7)
        part.paint(distance, tissue["kidney cortex"])
        columns = 2.5 * part.fields["fine"]
        part.paint(distance + 7 + columns, tissue["kidney medulla"])
        part.paint(self.sinus.distance(part) + columns, tissue["fat"] * 0.7)
