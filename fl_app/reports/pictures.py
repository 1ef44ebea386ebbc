"""Pictures of single cases: three planes with the contours of truth and prediction. They never leave the site.

Volumes are in RAS: the first index grows to the patient's right, the second to anterior, the third to the head. The
pictures are seen as radiologists do: the patient's right is on the viewer's left; a sagittal plane looks to the left.
"""

from __future__ import annotations

import io
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke

if TYPE_CHECKING:
    from fl_app.training.metrics import CaseScore

PICTURES = "pictures"
_INDEX = "pictures.json"
_PIXELS = 420
_MARGIN_MM = 40.0
_TRUTH, _PREDICTED = "#2fd0da", "#ff9a3d"  # as in style.css

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class CaseVolumes:
    """A case on one grid in RAS.

    Attributes:
        image: (x, y, z).
        truth: (x, y, z) integers, 0 is background.
        predicted: likewise.
        spacing_mm: voxel size along x, y and z.
        window: the image's values that are drawn black and white, such as HU.
    """

    image: Array
    truth: Array
    predicted: Array
    spacing_mm: tuple[float, float, float]
    window: tuple[float, float] = (0.0, 1.0)


@dataclass(frozen=True)
class CasePicture:
    """A case's pictures in the folder.

    Attributes:
        rank: best, median or worst.
        case: its name.
        dice: mean over its organs.
        planes: file names by plane.
    """

    rank: str
    case: str
    dice: float
    planes: dict[str, str]


@dataclass(frozen=True)
class _Plane:
    """Which axes of a volume run across and up, and what is written left, right, top and bottom."""

    name: str
    across: int
    up: int
    through: int
    letters: str


# each plane's first axis is mirrored: right (or anterior) comes to the viewer's left
_PLANES = (
    _Plane("axial", 0, 1, 2, "RLAP"),
    _Plane("coronal", 0, 2, 1, "RLHF"),
    _Plane("sagittal", 1, 2, 0, "APHF"),
)


def write_case_pictures(
    folder: Path, scores: Sequence[CaseScore], volumes: Callable[[int], CaseVolumes]
) -> list[CasePicture]:
    """Draw the best, the median and the worst test case.

    Args:
        folder: where the PNG files go, with an index of them; the site's own.
        scores: of all test cases.
        volumes: the voxels of the case at a place in ``scores``; called for the chosen cases only, one by one.
    """
    folder.mkdir(parents=True, exist_ok=True)
    drawn = []
    for rank, place in choose_cases(scores).items():
        files = {}
        for plane, content in draw_planes(volumes(place)).items():
            files[plane] = f"{rank}-{plane}.png"
            (folder / files[plane]).write_bytes(content)
        drawn.append(CasePicture(rank, scores[place].case, _mean(scores[place]), files))
    (folder / _INDEX).write_text(json.dumps([asdict(picture) for picture in drawn], indent=2) + "\n", encoding="utf-8")
    return drawn


def read_case_pictures(folder: Path) -> list[CasePicture]:
    """The pictures that `write_case_pictures` left in a folder; none if there are none."""
    path = folder / _INDEX
    if not path.exists():
        return []
    return [CasePicture(**entry) for entry in json.loads(path.read_text(encoding="utf-8"))]


def choose_cases(scores: Sequence[CaseScore]) -> dict[str, int]:
    """Places of the best, median and worst case by mean Dice over organs; of two cases there is no median."""
    known = sorted(
        (place for place in range(len(scores)) if not math.isnan(_mean(scores[place]))), key=lambda p: _mean(scores[p])
    )
    if not known:
        return {}
    chosen = {"best": known[-1]}
    if len(known) > 2:
        chosen["median"] = known[(len(known) - 1) // 2]
    if len(known) > 1:
        chosen["worst"] = known[0]
    return chosen


def draw_planes(volumes: CaseVolumes) -> dict[str, bytes]:
    """PNG files of the axial, coronal and sagittal plane that show most of truth and prediction.

    All three have the same scale in mm and show the organs with 40 mm around them.
    """
    union = (volumes.truth > 0) | (volumes.predicted > 0)
    centre_mm, side_mm = _view(union, volumes.spacing_mm)
    return {plane.name: _draw(volumes, plane, _fullest(union, plane.through), centre_mm, side_mm) for plane in _PLANES}


def _mean(score: CaseScore) -> float:
    known = [value for value in score.dice.values() if not math.isnan(value)]
    return math.fsum(known) / len(known) if known else math.nan


def _fullest(union: Array, axis: int) -> int:
    """The slice with the largest area of organs; the middle one if there are none."""
    area = union.sum(axis=tuple(other for other in range(3) if other != axis))
    return int(area.argmax()) if area.any() else union.shape[axis] // 2


def _view(union: Array, spacing: Sequence[float]) -> tuple[tuple[float, ...], float]:
    """Centre (mm from the first voxel's corner) and side (mm) of the cube that is shown."""
    if union.any():
        places = np.nonzero(union)
        ends = [
            (int(each.min()) * size, (int(each.max()) + 1) * size) for each, size in zip(places, spacing, strict=True)
        ]
        margin = 2 * _MARGIN_MM
    else:
        ends = [(0.0, length * size) for length, size in zip(union.shape, spacing, strict=True)]
        margin = 0.0
    return tuple((low + high) / 2 for low, high in ends), max(high - low for low, high in ends) + margin


def _draw(volumes: CaseVolumes, plane: _Plane, index: int, centre: Sequence[float], side: float) -> bytes:
    step_across, step_up = volumes.spacing_mm[plane.across], volumes.spacing_mm[plane.up]

    def cut(volume: Array) -> Array:
        # what is left after taking one slice is (across, up); images have rows first
        return np.take(volume, index, axis=plane.through).T

    image = cut(volumes.image)
    rows, columns = image.shape
    figure = Figure(figsize=(1, 1), dpi=_PIXELS, facecolor="black")
    axes = figure.add_axes((0.0, 0.0, 1.0, 1.0))
    axes.set_axis_off()
    low, high = volumes.window
    axes.imshow(
        image,
        cmap="gray",
        vmin=low,
        vmax=high,
        origin="lower",
        extent=(0, columns * step_across, 0, rows * step_up),
        interpolation="bilinear",
        aspect="equal",
    )
    across = (np.arange(columns) + 0.5) * step_across
    up = (np.arange(rows) + 0.5) * step_up
    # the truth is the wider line below, so that both are seen where they agree
    for labels, colour, width in ((cut(volumes.truth), _TRUTH, 0.5), (cut(volumes.predicted), _PREDICTED, 0.22)):
        for organ in np.unique(labels[labels > 0]):
            if min(labels.shape) > 1:
                axes.contour(across, up, labels == organ, levels=[0.5], colors=[colour], linewidths=[width])
    middle_across, middle_up = centre[plane.across], centre[plane.up]
    axes.set_xlim(middle_across + side / 2, middle_across - side / 2)  # mirrored
    axes.set_ylim(middle_up - side / 2, middle_up + side / 2)
    _annotate(axes, plane.letters, side)
    stream = io.BytesIO()
    FigureCanvasAgg(figure).print_png(stream)
    return stream.getvalue()


def _annotate(axes: Any, letters: str, side: float) -> None:
    """Directions at the edges, and a line of 5 cm."""
    style: dict[str, Any] = {
        "transform": axes.transAxes,
        "color": "white",
        "fontsize": 3.2,
        "ha": "center",
        "va": "center",
        "path_effects": [withStroke(linewidth=0.5, foreground="black")],
    }
    for letter, place in zip(letters, ((0.035, 0.5), (0.965, 0.5), (0.5, 0.96), (0.5, 0.04)), strict=True):
        axes.text(*place, letter, **style)
    axes.plot((0.04, 0.04 + 50 / side), (0.045, 0.045), transform=axes.transAxes, color="white", linewidth=0.4)
    axes.text(0.04, 0.075, "5 cm", **(style | {"ha": "left", "fontsize": 2.4}))
