"""The charts of a run's page, from its result."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from fl_app.reports.models import ModelRow
from fl_app.reports.statistics import estimate
from fl_app.reports.svg import Line, Point, Track, axis, line_chart, nice_scale, round_scale
from fl_app.reports.words import by_name, duration, score
from fl_app.result import Result, Round, SiteRound

_COLOURS = 8  # more sites cannot be told apart by colour


@dataclass(frozen=True)
class Row:
    """A row of a chart: its label, a remark below it, the drawing, and what stands at its end."""

    label: str
    remark: str
    drawing: Markup
    value: str = ""


@dataclass(frozen=True)
class Rows:
    """Rows over one axis."""

    rows: list[Row]
    axis: Markup


@dataclass(frozen=True)
class Share:
    """Where a site's time in a round went, in seconds.

    Attributes:
        training: training.
        validation: scoring the model that the round began with.
        waiting: for the slowest site.
        other: transfer, averaging, saving: what the slowest site's work leaves of the round.
    """

    training: float
    validation: float
    waiting: float
    other: float


def site_styles(result: Result) -> dict[str, str]:
    """Each site's colour; with many sites one for all."""
    names = sorted({*result.sites, *(name for done in result.rounds for name in done.sites)}, key=by_name)
    return {name: f"s{place}" if len(names) <= _COLOURS else "many" for place, name in enumerate(names)}


def dice_by_round(
    rounds: Sequence[Round], asked: int, styles: dict[str, str], initial: float | None = None
) -> Markup | None:
    """Validation Dice of each site and their mean; none before the first is known.

    Args:
        rounds: rounds of one network's training.
        asked: how many there shall be.
        styles: of the sites.
        initial: mean Dice before the first round, if it was measured.
    """
    mean: list[Point] = [(0, initial), *((done.number, done.dice) for done in rounds)]
    lines = [*_site_lines(rounds, styles, lambda site: site.dice), Line("mean", "mean", mean)]
    return _rounds(lines, asked, 0 if initial is not None else 1, "Validation Dice by round", top=1.0)


def loss_by_round(rounds: Sequence[Round], asked: int, styles: dict[str, str]) -> Markup | None:
    """Training loss of each site."""
    return _rounds(_site_lines(rounds, styles, lambda site: site.loss), asked, 1, "Training loss by round", bottom=0.0)


def seconds_by_round(result: Result, styles: dict[str, str]) -> Markup | None:
    """How long each site worked in each round, and how long the round took."""
    shares = [(done, time_shares(done)) for done in result.rounds if done.seconds]
    lines = [
        Line(
            name,
            style,
            [
                (done.number, split[name].training + split[name].validation if name in split else None)
                for done, split in shares
            ],
        )
        for name, style in styles.items()
    ]
    whole = Line("whole round", "mean", [(done.number, done.seconds) for done, _ in shares])
    return _rounds([*lines, whole], max(result.rounds_asked, len(result.rounds)), 1, "Seconds by round", bottom=0.0)


def _site_lines(
    rounds: Sequence[Round], styles: dict[str, str], value: Callable[[SiteRound], float | None]
) -> list[Line]:
    return [
        Line(
            name,
            style,
            [(done.number, value(done.sites[name]) if name in done.sites else None) for done in rounds],
        )
        for name, style in styles.items()
    ]


def _rounds(
    lines: Sequence[Line], asked: int, first: int, title: str, bottom: float | None = None, top: float | None = None
) -> Markup | None:
    known = [value for line in lines for _, value in line.points if value is not None]
    if not known:
        return None
    return line_chart(lines, round_scale(asked, first), nice_scale(known, low=bottom, high=top), title)


def tests_by_site(result: Result, styles: dict[str, str]) -> Rows | None:
    """Mean test Dice of each site with the standard deviation over its cases."""
    if result.final is None or not any(scores.dice is not None for scores in result.final.sites.values()):
        return None
    known = {name: each for name, scores in result.final.sites.items() if (each := estimate(scores))}
    ends = [end for each in known.values() for end in (each.mean - each.std, each.mean + each.std)]
    scale = nice_scale([max(0.0, min(1.0, end)) for end in ends], high=1.0)
    rows = []
    for name, scores in result.final.sites.items():
        track = Track(scale, f"Test Dice at {name}")
        if name in known:
            mean, std = known[name].mean, known[name].std
            hint = f"{name}: {mean:.3f} ± {std:.3f}"
            track.interval(mean, max(0.0, mean - std), min(1.0, mean + std), styles.get(name, "many"), hint)
        rows.append(Row(name, _cases(scores.cases), track.drawn(), score(scores.dice)))
    return Rows(rows, axis(scale))


def models_by_site(models: Sequence[ModelRow], result: Result) -> Rows | None:
    """The models' test Dice at each site with confidence intervals; each site's own stands for training alone."""
    assert result.final is not None
    shown = [row for row in models if not row.kind.startswith("one")]
    known = {
        name: [(row, each) for row in shown if name in row.scores and (each := estimate(row.scores[name]))]
        for name in result.final.sites
    }
    ends = [end for marks in known.values() for _, each in marks for end in (each.low, each.high)]
    if not ends:
        return None
    scale = nice_scale(ends, high=1.0)
    rows = []
    for name, marks in known.items():
        track = Track(scale, f"Models on the test cases of {name}", height=18 * len(shown) + 8)
        for place, (row, each) in enumerate(marks):
            hint = f"{row.kind} at {name}: {each.mean:.3f} ({each.low:.3f} to {each.high:.3f})"
            track.interval(each.mean, each.low, each.high, f"model-{row.kind}", hint, y=13 + 18 * place)
        rows.append(Row(name, _cases(result.final.sites[name].cases), track.drawn()))
    return Rows(rows, axis(scale))


def time_shares(done: Round) -> dict[str, Share]:
    """Where each site's time in a round went.

    The slowest site's work is what the round cannot be shorter than; what is left of the round is transfer, averaging
    and saving, the same for all; and a faster site waits for the difference.
    """
    trained = {name: site for name, site in done.sites.items() if site.training_seconds or site.validation_seconds}
    work = {name: site.training_seconds + site.validation_seconds for name, site in trained.items()}
    slowest = min(max(work.values(), default=0.0), done.seconds)
    return {
        name: Share(
            site.training_seconds,
            site.validation_seconds,
            max(0.0, slowest - work[name]),
            max(0.0, done.seconds - max(slowest, work[name])),
        )
        for name, site in trained.items()
    }


def time_by_site(result: Result) -> Rows | None:
    """Each site's time over all rounds, by what it was spent on."""
    sums = {name: Share(0.0, 0.0, 0.0, 0.0) for name in site_styles(result)}
    for done in result.rounds:
        for name, share in time_shares(done).items() if done.seconds else ():
            sums[name] = _added(sums[name], share)
    totals = {name: sum(_parts(share)) for name, share in sums.items()}
    if not any(totals.values()):
        return None
    scale = nice_scale(totals.values(), low=0.0)
    rows = []
    for name, share in sums.items():
        parts = [
            (seconds, f"time-{what}", f"{name}, {_TIMES[what]}: {duration(seconds)}")
            for what, seconds in zip(_TIMES, _parts(share), strict=True)
        ]
        remark = f"{share.training / totals[name]:.0%} training" if totals[name] else "no round"
        rows.append(Row(name, remark, Track(scale, f"Time of {name}").stack(parts).drawn(), duration(totals[name])))
    return Rows(rows, axis(scale))


_TIMES = {
    "training": "training",
    "validation": "validation",
    "waiting": "waiting for the slowest site",
    "other": "transfer, averaging and the rest",
}


def spent(result: Result) -> list[tuple[int, str, Share | None]]:
    """(round, site, where its time went) of every site in every round."""
    return [
        (done.number, name, time_shares(done).get(name) if done.seconds else None)
        for done in result.rounds
        for name in sorted(done.sites, key=by_name)
    ]


def _parts(share: Share) -> tuple[float, float, float, float]:
    return share.training, share.validation, share.waiting, share.other


def _added(first: Share, second: Share) -> Share:
    return Share(*(a + b for a, b in zip(_parts(first), _parts(second), strict=True)))


def _cases(number: int) -> str:
    return f"{number} case{'' if number == 1 else 's'}"
