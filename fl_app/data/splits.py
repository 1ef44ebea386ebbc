"""Split a site's cases into training, validation and test, and a cohort into simulated sites."""

import difflib
import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fl_app.data.cases import Case
from fl_app.errors import DataError, UsageError

_SITE_RULES = ("iid", "by-size", "dirichlet", "same")
_ALLOWED = 'allowed are "iid", "by-size", "dirichlet:ALPHA" (such as dirichlet:0.5) and "same"'
_FEWEST = 3  # cases of a site: one to train, one to validate, one to test


@dataclass(frozen=True)
class Split:
    """The names of the cases in each part, sorted."""

    training: tuple[str, ...]
    validation: tuple[str, ...]
    test: tuple[str, ...]

    @staticmethod
    def reused(names: Sequence[str]) -> "Split":
        """Return a split whose three parts all hold every case: for trying out, its scores mean nothing."""
        cases = tuple(sorted(names))
        return Split(cases, cases, cases)


def split_cases(names: Sequence[str], seed: int, validation: float, test: float) -> Split:
    """Split cases so that a case stays in its part when others are added.

    Each case has a place in [0, 1): the hash of seed and name. Test is below `test`, validation is the
    next `validation`, training is the rest. The place depends on nothing but the case itself, which is
    not only the simplest stable rule but the only one: if adding cases may never move one, a case must
    lie where it would lie alone. Rules that meet the fractions more closely (ranks, blocks of ranks)
    move cases whenever one is added in between, and a moved case is a test case that was trained on.
    The price is that counts vary like coin tosses: of 20 cases, a part of 0.2 has 4 give or take 2.

    The one exception keeps a small site usable. From 3 cases on no part is empty: the border of an
    empty part moves past the nearest case, and the case moves back when the part gets one of its own.
    Growth makes this rare: with 0.2 + 0.2 it concerns 6 in 10 sites of 5 cases, 1 in 40 sites of 20,
    1 in 4000 sites of 40.

    Args:
        names: the cases, each once, in any order.
        seed: another seed gives another split.
        validation: the fraction for choosing the best model, above 0.
        test: the fraction for the report, above 0; both together below 1.

    Raises:
        DataError: fewer than 3 cases, or a name twice.
        UsageError: the fractions leave a part without room.
    """
    if not (validation > 0 and test > 0 and validation + test < 1):
        raise UsageError(
            f"The fractions for validation ({validation:g}) and test ({test:g}) must each be above 0 "
            "and together below 1."
        )
    if len(set(names)) < len(names):
        twice = sorted({name for name in names if list(names).count(name) > 1})
        raise DataError(f"Case names must be unique, but there is more than one of {', '.join(twice)}.")
    if len(names) < _FEWEST:
        raise DataError(
            f"There {'is 1 case' if len(names) == 1 else f'are {len(names)} cases'}, but training, validation "
            "and test need at least one case each. Add cases; or, for trying out only, set "
            "`data.reuse_cases: true` in the job file, which lets the same cases serve as all three."
        )
    place = {name: _place(f"{seed}/{name}") for name in names}
    order = sorted(names, key=lambda name: (place[name], name))
    below_test = sum(place[name] < test for name in order)
    below_validation = sum(place[name] < test + validation for name in order)
    first = min(max(below_test, 1), len(order) - 2)  # where validation begins
    second = min(max(below_validation, first + 1), len(order) - 1)  # where training begins
    parts = (order[second:], order[first:second], order[:first])
    return Split(*(tuple(sorted(part)) for part in parts))


def assign_to_sites(cases: Sequence[Case], sites: int, how: str, seed: int) -> list[list[Case]]:
    """Share one cohort out among simulated sites, each case to exactly one (but for "same").

    Args:
        cases: the cohort.
        sites: how many sites.
        how: "iid": at random, equal counts. "by-size": the first site gets the smallest image files,
            the last the largest. "dirichlet:ALPHA": at random, the sites' shares drawn from a Dirichlet
            distribution (ALPHA 0.5: very unequal, 100: nearly equal), at least 3 cases a site where
            there are enough. "same": every site gets every case, for trying the path only.
        seed: the same seed gives the same sites, whatever the order of the cases.

    Raises:
        UsageError: an unknown `how`, or no site at all.
        DataError: fewer cases than sites, or an image that is gone.
    """
    rule, alpha = _parse_rule(how)
    if sites < 1:
        raise UsageError(f"There must be at least 1 site, not {sites}.")
    if rule == "same":
        if not cases:
            raise DataError("There are no cases to give to the sites.")
        return [sorted(cases, key=lambda case: case.name) for _ in range(sites)]
    if len(cases) < sites:
        raise DataError(f'{len(cases)} cases are too few for {sites} sites; use fewer sites, more cases, or "same".')
    if rule == "by-size":
        ordered = sorted(cases, key=lambda case: (_file_size(case), case.name))
    else:
        # not the hash of split_cases: a site of neighbours in it would be all training or all test
        ordered = sorted(cases, key=lambda case: (_place(f"{seed}/site/{case.name}"), case.name))
    counts = [len(cases) // sites + (site < len(cases) % sites) for site in range(sites)]
    if rule == "dirichlet":
        counts = _unequal_counts(len(cases), sites, alpha, seed)
    ends = np.cumsum(counts).tolist()
    return [ordered[end - count : end] for end, count in zip(ends, counts, strict=True)]


def _place(text: str) -> float:
    """Return the SHA-256 of a text as a number in [0, 1)."""
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()
    return (int.from_bytes(digest[:8], "big") >> 11) / 2**53  # 53 bits: what a float holds, so never 1.0


def _parse_rule(how: str) -> tuple[str, float]:
    """Return the rule's name and its alpha (nan where the rule has none)."""
    rule, colon, number = how.partition(":")
    if rule not in _SITE_RULES:
        near = difflib.get_close_matches(rule.lower(), _SITE_RULES, n=1)
        hint = f'did you mean "{near[0]}"? ' if near else ""
        raise UsageError(f'There is no way "{how}" to assign cases to sites; {hint}{_ALLOWED}.')
    if rule != "dirichlet":
        if colon:
            raise UsageError(f'"{rule}" takes no number, but "{how}" has one; {_ALLOWED}.')
        return rule, math.nan
    try:
        alpha = float(number)
    except ValueError:
        alpha = math.nan
    if not 0 < alpha < math.inf:
        raise UsageError(f'"{how}" needs a finite number above 0 after "dirichlet:"; {_ALLOWED}.')
    return rule, alpha


def _unequal_counts(cases: int, sites: int, alpha: float, seed: int) -> list[int]:
    """Return the number of cases of each site, drawn from a Dirichlet distribution."""
    # hashed because NumPy takes no negative seed; clipped because it fails for extreme alpha
    generator = np.random.default_rng(int(_place(f"{seed}/dirichlet") * 2**53))
    shares = generator.dirichlet([min(max(alpha, 1e-3), 1e9)] * sites) * cases
    counts = np.floor(shares).astype(int)
    for site in np.argsort(counts - shares, kind="stable")[: cases - counts.sum()]:  # largest remainders
        counts[site] += 1
    fewest = min(_FEWEST, cases // sites)
    while counts.min() < fewest:
        counts[counts.argmax()] -= 1
        counts[counts.argmin()] += 1
    return [int(count) for count in counts]


def _file_size(case: Case) -> int:
    try:
        return case.image.stat().st_size
    except OSError as problem:
        raise DataError(f"{case.image} cannot be read: {problem.strerror}.") from problem
