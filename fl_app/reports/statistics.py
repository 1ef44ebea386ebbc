"""Confidence intervals: from the scores of single cases at a site, from means and spreads elsewhere."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import stdtrit

from fl_app.result import SiteScores

_RESAMPLES = 10_000


@dataclass(frozen=True)
class Estimate:
    """A mean score with its 95 % confidence interval; all between 0 and 1.

    Attributes:
        mean: over the cases.
        low: lower end of the interval; as high as the mean where one case or none is known.
        high: its upper end.
        std: population standard deviation over the cases.
        cases: how many.
    """

    mean: float
    low: float
    high: float
    std: float
    cases: int

    @property
    def has_interval(self) -> bool:
        """Whether there are cases enough for an interval."""
        return self.cases > 1


def student_interval(mean: float, std: float, cases: int) -> Estimate:
    """Student's t-interval (Student, Biometrika 1908): mean +- t(0.975, n - 1) * std / sqrt(n - 1).

    Args:
        mean: over the cases, 0 to 1.
        std: population standard deviation, hence n - 1 below the root.
        cases: n; with fewer than two there is no interval.
    """
    reach = float(stdtrit(cases - 1, 0.975)) * std / math.sqrt(cases - 1) if cases > 1 else 0.0
    return Estimate(mean, max(0.0, mean - reach), min(1.0, mean + reach), std, cases)


def bootstrap_interval(values: Sequence[float], seed: int = 0) -> Estimate:
    """Percentile bootstrap of the mean over cases (Efron, Ann Statist 1979), 10,000 resamples.

    Args:
        values: a score of each case; not empty, no NaN.
        seed: the same seed gives the same interval.
    """
    scores = np.asarray(values, dtype=float)
    if len(scores) < 2:
        return Estimate(float(scores.mean()), float(scores.mean()), float(scores.mean()), 0.0, len(scores))
    chosen = np.random.default_rng(seed).integers(0, len(scores), (_RESAMPLES, len(scores)))
    low, high = np.quantile(scores[chosen].mean(axis=1), (0.025, 0.975))
    return Estimate(float(scores.mean()), float(low), float(high), float(scores.std()), len(scores))


def estimate(scores: SiteScores) -> Estimate | None:
    """The t-interval of a model's Dice at a site; none where nothing was scored."""
    return None if scores.dice is None else student_interval(scores.dice, scores.dice_std or 0.0, scores.cases)


def pooled_estimate(sites: Iterable[SiteScores]) -> Estimate | None:
    """The t-interval of Dice over all cases of several sites: their spread is within and between the sites."""
    known = [(score.dice, score.dice_std or 0.0, score.cases) for score in sites if score.dice is not None]
    cases = sum(count for _, _, count in known)
    if not cases:
        return None
    mean = math.fsum(value * count for value, _, count in known) / cases
    variance = math.fsum((std**2 + (value - mean) ** 2) * count for value, std, count in known) / cases
    return student_interval(mean, math.sqrt(variance), cases)


@dataclass(frozen=True)
class Box:
    """Five numbers of a box plot (Tukey 1977): whiskers reach the last values within 1.5 box lengths."""

    low: float
    lower_quartile: float
    median: float
    upper_quartile: float
    high: float


def box(values: Sequence[float]) -> Box:
    """The box plot of some values; not empty, no NaN."""
    ordered = np.sort(np.asarray(values, dtype=float))
    first, median, third = (float(each) for each in np.quantile(ordered, (0.25, 0.5, 0.75)))
    reach = 1.5 * (third - first)
    inside = ordered[(ordered >= first - reach) & (ordered <= third + reach)]
    return Box(float(inside[0]), first, median, third, float(inside[-1]))
