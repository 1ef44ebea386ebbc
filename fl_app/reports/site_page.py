"""A site's own page: the test scores of its cases one by one, and pictures. It stays at the site."""

from __future__ import annotations

import csv
import math
from dataclasses import dataclass
from pathlib import Path

from fl_app.errors import DataError
from fl_app.reports.charts import Row, Rows
from fl_app.reports.page import REPORT, embedded, environment, write_page
from fl_app.reports.pictures import PICTURES, CasePicture, read_case_pictures
from fl_app.reports.statistics import Estimate, bootstrap_interval, box
from fl_app.reports.svg import Track, axis, nice_scale

SCORES = "test_cases.csv"
_MEASURES = {"dice": "Dice", "surface_dice": "Surface Dice"}


@dataclass(frozen=True)
class CaseRow:
    """A line of ``test_cases.csv``; a score is none where neither truth nor prediction holds the organ."""

    case: str
    organ: str
    dice: float | None
    surface_dice: float | None


def write_site_report(folder: Path, out: Path | None = None) -> Path:
    """Make a site's own page.

    Args:
        folder: the site's output folder, with ``test_cases.csv`` and perhaps ``pictures``.
        out: where to write the page; none: ``report.html`` in the folder.

    Returns:
        Where the page is.

    Raises:
        DataError: there are no test scores in the folder, or they cannot be read.
    """
    rows = _read(folder / SCORES)
    folder = folder.resolve()
    # the output of a real site lies in its kit's folder, and there in a folder for each job
    kit = next((place.parent for place in (folder, folder.parent) if place.name == "output"), folder)
    page = out or folder / REPORT
    write_page(page, _render(kit.name, rows, folder))
    return page


def _read(path: Path) -> list[CaseRow]:
    try:
        with path.open(newline="", encoding="utf-8") as stream:
            return [
                CaseRow(line["case"], line["organ"], _score(line["dice"]), _score(line["surface_dice"]))
                for line in csv.DictReader(stream)
            ]
    except FileNotFoundError:
        raise DataError(f"{path}: there is no such table - a site writes it when it tests the final model") from None
    except (OSError, UnicodeDecodeError, csv.Error, KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path}: not a site's table of test scores: {error}") from None


def _score(text: str) -> float | None:
    value = float(text)
    if math.isnan(value):
        return None
    if not 0 <= value <= 1:
        raise ValueError(f"{text} is no score between 0 and 1")
    return value


def _render(name: str, rows: list[CaseRow], folder: Path) -> str:
    organs = list(dict.fromkeys(row.organ for row in rows))
    known = {
        (measure, organ): [row for row in rows if row.organ == organ and getattr(row, measure) is not None]
        for measure in _MEASURES
        for organ in organs
    }
    means = {
        key: bootstrap_interval([getattr(row, key[0]) for row in scored]) for key, scored in known.items() if scored
    }
    pictures = read_case_pictures(folder / PICTURES)
    return (
        environment()
        .get_template("site.html")
        .render(
            title=name,
            name=name,
            figures=_figures(len({row.case for row in rows}), organs, means),
            charts=[
                (title, chart)
                for measure, title in _MEASURES.items()
                if (chart := _boxes(measure, title, organs, known, means))
            ],
            pictures=[_with_images(picture, folder / PICTURES) for picture in pictures],
            cases=sorted(rows, key=lambda row: (organs.index(row.organ), -1 if row.dice is None else row.dice)),
        )
    )


def _figures(cases: int, organs: list[str], means: dict[tuple[str, str], Estimate]) -> list[tuple[str, str, str]]:
    figures = [("Test cases", str(cases), f"{len(organs)} organ{'' if len(organs) == 1 else 's'}")]
    for (measure, organ), mean in means.items():
        interval = f"95 % interval {mean.low:.2f} to {mean.high:.2f}" if mean.has_interval else "one case: no interval"
        figures.append((f"{_MEASURES[measure]}, {organ}", f"{mean.mean:.3f}", interval))
    return figures


def _boxes(
    measure: str,
    title: str,
    organs: list[str],
    known: dict[tuple[str, str], list[CaseRow]],
    means: dict[tuple[str, str], Estimate],
) -> Rows | None:
    values = {organ: [getattr(row, measure) for row in known[measure, organ]] for organ in organs}
    everything = [value for each in values.values() for value in each]
    if not everything:
        return None
    scale = nice_scale(everything, high=1.0)
    rows = []
    for place, organ in enumerate(each for each in organs if values[each]):
        hints = [f"{row.case}: {getattr(row, measure):.3f}" for row in known[measure, organ]]
        track = Track(scale, f"{title} of {organ}", height=44).box(
            box(values[organ]), values[organ], f"s{place % 8}", hints
        )
        mean, count = means[measure, organ], len(values[organ])
        rows.append(Row(organ, f"{count} case{'' if count == 1 else 's'}", track.drawn(), f"{mean.mean:.3f}"))
    return Rows(rows, axis(scale))


def _with_images(picture: CasePicture, folder: Path) -> dict[str, object]:
    """What the template shows of a case: its pictures inside the page."""
    try:
        planes = {plane: embedded((folder / file).read_bytes(), "png") for plane, file in picture.planes.items()}
    except OSError as error:
        raise DataError(f"{folder}: a picture is missing: {error}") from None
    return {"rank": picture.rank, "case": picture.case, "dice": picture.dice, "planes": planes}
