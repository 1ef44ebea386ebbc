"""Charts as SVG without a single script: they fill the width that they are given, text keeps its size.

Places are percentages of the chart's own width and height, so nothing is scaled, on a phone as on a desk. Colours are
classes of the page's style sheet, which knows light, dark and paper. Details appear on pointing (SVG's ``title``).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from markupsafe import Markup, escape

from fl_app.reports.statistics import Box

_CROWDED = 25  # points of a line; more need smaller dots
Point = tuple[float, float | None]


@dataclass(frozen=True)
class Scale:
    """From values to percent of a chart's width, with the values that are written at its axis."""

    low: float
    high: float
    ticks: tuple[float, ...]

    def percent(self, value: float) -> float:
        """Where a value lies, 0 to 100; what lies outside is drawn at the edge."""
        share = (value - self.low) / (self.high - self.low)
        return round(100 * min(max(share, 0.0), 1.0), 2)


def nice_scale(values: Iterable[float], low: float | None = None, high: float | None = None, count: int = 4) -> Scale:
    """A scale whose ticks are round numbers: steps of 1, 2 or 5 times a power of ten.

    Args:
        values: what must be on it; may be empty.
        low: its lower end, in place of the smallest value's.
        high: its upper end, likewise.
        count: about how many steps.
    """
    known = [*values, *(end for end in (low, high) if end is not None)] or [0.0, 1.0]
    first, last = min(known), max(known)
    if last - first < 1e-9:
        first, last = first - 0.5 * (low is None), last + 0.5
    power = 10 ** math.floor(math.log10((last - first) / count))
    step = min((size * power for size in (1, 2, 5, 10)), key=lambda size: abs((last - first) / size - count))
    start, stop = math.floor(first / step + 1e-9), math.ceil(last / step - 1e-9)
    ticks = tuple(round(each * step, 10) for each in range(start, stop + 1))
    return Scale(ticks[0], ticks[-1], ticks)


def round_scale(rounds: int, first: int) -> Scale:
    """A scale of rounds: whole numbers, at most about eight of them."""
    step = max(1, math.ceil((rounds - first) / 7))
    return Scale(first, max(rounds, first + 1), tuple(range(first, max(rounds, first + 1) + 1, step)))


@dataclass(frozen=True)
class Line:
    """A line of a line chart; a point without a value leaves a gap."""

    name: str
    style: str
    points: Sequence[Point]


def line_chart(lines: Sequence[Line], across: Scale, up: Scale, title: str) -> Markup:
    """Lines over rounds; rounds are written below, values at the left."""
    parts = []
    for tick in up.ticks:
        y = 100 - up.percent(tick)
        parts.append(_line((0, y), (100, y), "grid"))
        parts.append(Markup('<text class="tick end" x="-8" y="{}%" dy="0.34em">{:g}</text>').format(y, tick))
    for tick in across.ticks:
        x = across.percent(tick)
        parts.append(Markup('<text class="tick middle" x="{}%" y="100%" dy="20">{:g}</text>').format(x, tick))
    for line in lines:
        placed = [
            (across.percent(x), 100 - up.percent(y), Markup("{}, round {:g}: {:.3f}").format(line.name, x, y))
            if y is not None
            else None
            for x, y in line.points
        ]
        for before, after in pairwise(placed):
            if before and after:
                parts.append(_line(before[:2], after[:2], f"stroke {line.style}"))
        radius = 3 if len(placed) <= _CROWDED else 2
        parts += [_dot(spot[0], f"{spot[1]}%", radius, f"fill {line.style}", spot[2]) for spot in placed if spot]
    return _svg("lines", parts, title)


@dataclass(frozen=True)
class Track:
    """A row of a chart whose values run from left to right; the page writes its label beside it.

    Attributes:
        parts: SVG elements, in the order in which they are drawn.
        height: pixels.
    """

    scale: Scale
    title: str
    height: int = 26
    parts: list[Markup] = field(default_factory=list)

    def interval(self, mean: float, low: float, high: float, style: str, hint: str, y: int | None = None) -> Track:
        """A dot with a line to both sides."""
        middle = self.height // 2 if y is None else y
        self.parts.append(_bar(self.scale, low, high, middle - 1, 2, f"fill soft {style}", hint))
        self.parts.append(_dot(self.scale.percent(mean), str(middle), 5, f"fill {style}", Markup(escape(hint))))
        return self

    def box(self, box: Box, values: Sequence[float], style: str, hints: Sequence[str]) -> Track:
        """A box plot, and each value as a dot on it."""
        middle = self.height // 2
        low, high = self.scale.percent(box.low), self.scale.percent(box.high)
        self.parts.append(_bar(self.scale, box.low, box.high, middle - 1, 2, f"fill soft {style}", ""))
        for end in (low, high):
            self.parts.append(
                Markup('<rect class="fill soft {}" x="{}%" y="{}" width="1.5" height="12"/>').format(
                    style, end, middle - 6
                )
            )
        self.parts.append(
            _bar(self.scale, box.lower_quartile, box.upper_quartile, middle - 10, 20, f"fill box {style}", "")
        )
        self.parts.append(
            Markup('<rect class="fill {}" x="{}%" y="{}" width="2" height="20" transform="translate(-1 0)"/>').format(
                style, self.scale.percent(box.median), middle - 10
            )
        )
        for place, (value, hint) in enumerate(zip(values, hints, strict=True)):
            # neighbours do not hide each other: each is moved up or down by the same little pattern
            shift = (0, -5, 5, -8, 8, -3, 3)[place % 7]
            spot = self.scale.percent(value)
            self.parts.append(_dot(spot, str(middle + shift), 3, f"fill strip {style}", Markup(escape(hint))))
        return self

    def stack(self, shares: Sequence[tuple[float, str, str]]) -> Track:
        """Bars end to end, each (length, style, what it is)."""
        start = 0.0
        for length, style, hint in shares:
            self.parts.append(
                _bar(self.scale, start, start + length, 4, self.height - 8, f"fill {style}", hint, minimum=0)
            )
            start += length
        return self

    def drawn(self) -> Markup:
        """The row, over its grid."""
        grid = [
            Markup('<line class="grid" x1="{0}%" x2="{0}%" y1="0" y2="100%"/>').format(self.scale.percent(tick))
            for tick in self.scale.ticks
        ]
        return _svg("track", [*grid, *self.parts], self.title, self.height)


def axis(scale: Scale) -> Markup:
    """The values below a column of tracks."""
    parts = [
        Markup('<text class="tick middle" x="{}%" y="14">{:g}</text>').format(scale.percent(tick), tick)
        for tick in scale.ticks
    ]
    return _svg("track", parts, "", 20)


def _svg(style: str, parts: Iterable[Markup], title: str, height: int | None = None) -> Markup:
    size = Markup(' height="{}"').format(height) if height else Markup("")
    told = Markup('role="img" aria-label="{}"').format(title) if title else Markup('aria-hidden="true"')
    return Markup('<svg class="{}" {}{}>{}</svg>').format(style, told, size, Markup("").join(parts))


def _line(start: tuple[float, float], end: tuple[float, float], style: str) -> Markup:
    return Markup('<line class="{}" x1="{}%" y1="{}%" x2="{}%" y2="{}%"/>').format(style, *start, *end)


def _dot(x: float, y: str, radius: float, style: str, hint: Markup) -> Markup:
    return Markup('<circle class="{}" cx="{}%" cy="{}" r="{}"><title>{}</title></circle>').format(
        style, x, y, radius, hint
    )


def _bar(
    scale: Scale, low: float, high: float, y: float, height: float, style: str, hint: str, minimum: float = 0.2
) -> Markup:
    start = scale.percent(low)
    width = max(scale.percent(high) - start, minimum)
    return Markup('<rect class="{}" x="{}%" y="{}" width="{:.2f}%" height="{}"><title>{}</title></rect>').format(
        style, start, y, width, height, hint
    )
