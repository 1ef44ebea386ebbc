"""The canvas the anatomy is painted on, and the two shapes that organs are made of.

Positions are canonical patient millimetres: x towards the patient's right, y anterior, z superior (RAS). The
origin lies in the middle of the trunk at the height of the first lumbar vertebra. Distances are signed: negative
inside a shape.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from fl_app.data.phantom.fields import FloatArray

Point = tuple[float, float, float]

# the free-form deformation is clipped to this, so a bounding box widened by it holds the whole shape
LARGEST_DEFORMATION_MM = 13.0


@dataclass(frozen=True)
class Box:
    """The lowest and the highest corner (mm) of a box."""

    lowest: Point
    highest: Point

    def joined(self, other: Box) -> Box:
        """Returns the box around both."""
        lowest = np.minimum(self.lowest, other.lowest)
        highest = np.maximum(self.highest, other.highest)
        return Box(as_point(lowest), as_point(highest))


@dataclass(frozen=True)
class Canvas:
    """A block of voxels being painted; a crop shares memory with the whole.

    `axes`: undeformed coordinates. `x`, `y`, `z`: deformed coordinates, shape (a, b, c). `hu`: the image in HU.
    `label`: the fraction of a voxel that the annotator gives to the spleen, 0 to 1. `abdomen`: signed distance to
    the abdominal cavity. `fields`: random fields by name. `softness`: mm over which an edge blends.
    """

    axes: tuple[FloatArray, FloatArray, FloatArray]
    x: FloatArray
    y: FloatArray
    z: FloatArray
    hu: FloatArray
    label: FloatArray
    abdomen: FloatArray
    fields: dict[str, FloatArray]
    softness: float

    def crop(self, box: Box) -> Canvas | None:
        """Returns the part that can show what lies in a box, or None when there is no such part."""
        slices = []
        margin = LARGEST_DEFORMATION_MM + self.softness
        for axis, low, high in zip(self.axes, box.lowest, box.highest, strict=True):
            start, stop = np.searchsorted(axis, (low - margin, high + margin))
            if start >= stop:
                return None
            slices.append(slice(int(start), int(stop)))
        part = tuple(slices)
        return Canvas(
            axes=(self.axes[0][part[0]], self.axes[1][part[1]], self.axes[2][part[2]]),
            x=self.x[part],
            y=self.y[part],
            z=self.z[part],
            hu=self.hu[part],
            label=self.label[part],
            abdomen=self.abdomen[part],
            fields={name: values[part] for name, values in self.fields.items()},
            softness=self.softness,
        )

    def paint(self, distance: FloatArray, hu: FloatArray | float, erases_label: bool = True) -> None:
        """Paints the inside of a shape, blending over its edge as partial volume does."""
        inside = self.coverage(distance)
        self.hu[...] += inside * (hu - self.hu)
        if erases_label:
            self.label[...] *= 1 - inside

    def annotate(self, distance: FloatArray) -> None:
        """Gives the inside of a shape to the spleen's label."""
        np.maximum(self.label, self.coverage(distance), out=self.label)

    def coverage(self, distance: FloatArray) -> FloatArray:
        """Returns the fraction of each voxel that lies inside, 0 to 1."""
        return np.clip(0.5 - distance / np.float32(self.softness), 0, 1)


def as_point(values: Sequence[float] | FloatArray) -> Point:
    """Returns three numbers as a point."""
    x, y, z = values
    return float(x), float(y), float(z)


def moved(point: Point, x: float, y: float, z: float) -> Point:
    """Returns a point moved by (x, y, z) mm."""
    return point[0] + x, point[1] + y, point[2] + z


def scaled(values: Point, factor: float) -> Point:
    """Returns three lengths multiplied by a factor."""
    return values[0] * factor, values[1] * factor, values[2] * factor


def rotation(tilts_degrees: Point) -> FloatArray:
    """Returns the matrix, shape (3, 3), that turns about x, then y, then z."""
    matrix = np.eye(3)
    for axis, degrees in enumerate(tilts_degrees):
        one, two = (axis + 1) % 3, (axis + 2) % 3
        turn = np.eye(3)
        cosine, sine = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
        turn[one, one] = turn[two, two] = cosine
        turn[one, two], turn[two, one] = -sine, sine
        matrix = turn @ matrix
    return np.asarray(matrix)


@dataclass(frozen=True)
class Ellipsoid:
    """An ellipsoid; centre and radii in mm, tilts in degrees about x, y, z."""

    centre: Point
    radii: Point
    tilts: Point = (0.0, 0.0, 0.0)

    def box(self, margin: float = 0.0) -> Box:
        """Returns the box around it, widened by a margin (mm)."""
        reach = np.sqrt(((rotation(self.tilts) * np.asarray(self.radii)) ** 2).sum(1)) + margin
        return Box(as_point(self.centre - reach), as_point(self.centre + reach))

    def distance(self, canvas: Canvas) -> FloatArray:
        """Returns the signed distance (mm), right at the surface and good near it."""
        turn = rotation(self.tilts).astype(np.float32)
        x, y, z = canvas.x - self.centre[0], canvas.y - self.centre[1], canvas.z - self.centre[2]
        near: FloatArray = np.full(x.shape, 1e-6, np.float32)
        far: FloatArray = np.full(x.shape, 1e-9, np.float32)
        for column, radius in enumerate(self.radii):
            along = (turn[0, column] * x + turn[1, column] * y + turn[2, column] * z) / np.float32(radius)
            along *= along
            near += along
            along /= np.float32(radius * radius)
            far += along
        scale = np.sqrt(near)
        return np.asarray(scale * (scale - 1) / np.sqrt(far))


@dataclass(frozen=True)
class Tube:
    """A round tube along straight pieces, with one radius for each point (mm)."""

    points: tuple[Point, ...]
    radii: tuple[float, ...]

    def box(self, margin: float = 0.0) -> Box:
        """Returns the box around it, widened by a margin (mm)."""
        points = np.asarray(self.points)
        reach = max(self.radii) + margin
        return Box(as_point(points.min(0) - reach), as_point(points.max(0) + reach))

    def distance(self, canvas: Canvas, margin: float = 0.0) -> FloatArray:
        """Returns the signed distance (mm), exact up to `margin` outside and at least that farther away."""
        result: FloatArray = np.full(canvas.x.shape, margin + canvas.softness, np.float32)
        whole = replace(canvas, hu=result)
        radii = tuple(float(radius) for radius in self.radii)
        for index, (start, stop) in enumerate(zip(self.points, self.points[1:], strict=False)):
            first, last = radii[index : index + 2]
            part = whole.crop(Tube((start, stop), (first, last)).box(margin))
            if part is None:
                continue
            dx, dy, dz = part.x - start[0], part.y - start[1], part.z - start[2]
            step = [end - begin for begin, end in zip(start, stop, strict=True)]
            length_squared = max(sum(value * value for value in step), 1e-6)
            along = np.clip((dx * step[0] + dy * step[1] + dz * step[2]) / length_squared, 0, 1)
            dx -= along * step[0]
            dy -= along * step[1]
            dz -= along * step[2]
            outside = np.sqrt(dx * dx + dy * dy + dz * dz) - (first + along * (last - first))
            np.minimum(part.hu, outside, out=part.hu)
        return result
