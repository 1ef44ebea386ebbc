"""Aggregation rules by name. Of ``n`` updates, at most ``f`` may be arbitrarily bad.

    mean           weighted mean; one bad update spoils it (McMahan et al., AISTATS 2017)
    norm_clipping  each update is shortened to the median of the norms, then the weighted mean
    trimmed_mean   of each number, the f largest and the f smallest are left out, then the mean
    median         the median of each number
    multi_krum     the mean of the n - f updates that lie closest to their neighbours
    krum           the one update that lies closest to its neighbours

All are the same to the bit in any order of arrival. All but the mean hold every update until the round's end: their
memory grows with the number of sites. The last four give every site the same weight, since a weight is a claim.
"""

from __future__ import annotations

import statistics
from abc import ABC, abstractmethod
from collections.abc import Collection

import torch

from fl_app.errors import ConfigError, FederationError
from server.aggregation.update import Values, Weight, misfit, norm
from server.aggregation.weighted_mean import WeightedMean

AGGREGATORS = ("mean", "norm_clipping", "trimmed_mean", "median", "multi_krum", "krum")


class Aggregate(ABC):
    """Takes the updates of a round, and makes the next model of them.

    Attributes:
        remarks: after `apply`, by site: what the rule did to its update, if it did not count as it was.
    """

    def __init__(self) -> None:
        self.remarks: dict[str, str] = {}

    @abstractmethod
    def add(self, site: str, update: Values, weight: Weight) -> None:
        """Take a whole update, or nothing of it.

        Args:
            site: whose it is.
            update: differences of the values, by name.
            weight: a number, for an update of the whole model; or one for each value that the update holds.

        Raises:
            FederationError: one sentence why the update cannot be used; nothing was taken.
        """

    @abstractmethod
    def apply(self) -> dict[str, torch.Tensor]:
        """The next model: all values of the current one; what no site trained is unchanged.

        Raises:
            FederationError: there are too few updates for this rule.
        """


class Mean(Aggregate):
    """The weighted mean, summed as updates arrive."""

    def __init__(self, like: Values) -> None:
        super().__init__()
        self._mean = WeightedMean(like)

    def add(self, site: str, update: Values, weight: Weight) -> None:
        """Add to the sums; whose update it is does not matter."""
        self._mean.add(update, weight)

    def apply(self) -> dict[str, torch.Tensor]:
        """The model plus the weighted mean."""
        return self._mean.apply()


class _Collected(Aggregate):
    """A rule that looks at all updates together. Holds the tensors that it is given, not copies."""

    def __init__(self, like: Values, attackers: int, fewest: int) -> None:
        super().__init__()
        self._like = like
        self._attackers = attackers
        self._fewest = fewest
        self._updates: dict[str, tuple[Values, Weight]] = {}

    def add(self, site: str, update: Values, weight: Weight) -> None:
        """Keep the update."""
        reason = "it answered twice" if site in self._updates else misfit(update, weight, self._like)
        if reason:
            raise FederationError(reason)
        self._updates[site] = (dict(update), weight)

    def apply(self) -> dict[str, torch.Tensor]:
        """Sort by site and let the rule decide."""
        updates = dict(sorted(self._updates.items()))
        if len(updates) < self._fewest:
            raise FederationError(
                f"{len(updates)} updates could be used, this rule needs {self._fewest} "
                "(federation.aggregator, federation.tolerated_sites)"
            )
        return self._combine({site: update for site, (update, _) in updates.items()})

    @abstractmethod
    def _combine(self, updates: dict[str, Values]) -> dict[str, torch.Tensor]: ...


class NormClipping(_Collected):
    """Sum over sites of weight x update x min(1, median norm / its norm).

    Clipping the norm is Sun, Kairouz, Suresh, McMahan, "Can You Really Backdoor Federated Learning?", 2019, section 4;
    the median of the norms as the limit is Andrew, Thakkar, McMahan, Ramaswamy, NeurIPS 2021, with quantile 0.5.
    """

    def _combine(self, updates: dict[str, Values]) -> dict[str, torch.Tensor]:
        norms = {site: norm(update) for site, update in updates.items()}
        limit = statistics.median(norms.values())
        mean = WeightedMean(self._like)
        for site, update in updates.items():
            factor = 1.0
            if norms[site] > limit:
                factor = limit / norms[site]
                self.remarks[site] = f"its update was shortened to {factor:.2g} of its length, the median of all"
            mean.add({name: value.double() * factor for name, value in update.items()}, self._updates[site][1])
        return mean.apply()


class TrimmedMean(_Collected):
    """Coordinate-wise trimmed mean: Yin, Chen, Ramchandran, Bartlett, ICML 2018, definition 2, with f = beta n.

    With half of the numbers left out at either end, it is the coordinate-wise median (definition 1). A value that few
    sites trained has fewer numbers left out: at least one remains, or the middle two.
    """

    def _combine(self, updates: dict[str, Values]) -> dict[str, torch.Tensor]:
        after = dict(self._like)
        for name, value in self._like.items():
            held = [update[name] for update in updates.values() if name in update]
            if held:
                ordered = torch.stack([each.double() for each in held]).sort(dim=0).values
                cut = min(self._attackers, (len(held) - 1) // 2)
                after[name] = (value.double() + ordered[cut : len(held) - cut].mean(dim=0)).to(value.dtype)
        return after


class Krum(_Collected):
    """Multi-Krum: Blanchard, El Mhamdi, Guerraoui, Stainer, NeurIPS 2017, section 4.

    The score of update i is the sum of |V_i - V_j|^2 over its n - f - 2 closest other updates j; the mean of the
    ``chosen`` updates with the lowest scores counts: 1 is Krum, n - f is what the paper's experiments use.
    """

    def __init__(self, like: Values, attackers: int, fewest: int, single: bool) -> None:
        super().__init__(like, attackers, fewest)
        self._single = single

    def add(self, site: str, update: Values, weight: Weight) -> None:
        """Keep the update, which must be of the whole model: distances between parts of it mean nothing."""
        if update.keys() != self._like.keys():
            raise FederationError("it holds a part of the model: federation.aggregator: krum compares whole updates")
        super().add(site, update, weight)

    def _combine(self, updates: dict[str, Values]) -> dict[str, torch.Tensor]:
        neighbours = len(updates) - self._attackers - 2
        chosen = 1 if self._single else len(updates) - self._attackers
        sites = list(updates)
        distances = {
            frozenset((one, other)): _squared_distance(updates[one], updates[other])
            for place, one in enumerate(sites)
            for other in sites[:place]
        }
        scores = {
            site: sum(sorted(distances[frozenset((site, other))] for other in sites if other != site)[:neighbours])
            for site in sites
        }
        best = sorted(sites, key=lambda site: (scores[site], site))
        self.remarks = dict.fromkeys(best[chosen:], "its update was left out: others lie closer together")
        mean = WeightedMean(self._like)
        for site in best[:chosen]:
            mean.add(updates[site], 1)
        return mean.apply()


def _squared_distance(one: Values, other: Values) -> float:
    distance = norm({name: one[name].double() - other[name].double() for name in one})
    return distance * distance


def fewest_sites(name: str, attackers: int) -> int:
    """How many updates a rule needs, to withstand as many bad ones.

    A median outvotes f with f + 1 others (Yin et al., ICML 2018: beta < 1/2); Krum needs 2 f + 2 < n (Blanchard et al.,
    NeurIPS 2017, proposition 4.2).
    """
    if name == "mean":
        return 1
    return 2 * attackers + (3 if name in ("krum", "multi_krum") else 1)


def build_aggregate(name: str, like: Values, sites: Collection[str], attackers: int = 1) -> Aggregate:
    """A rule for one round.

    Args:
        name: one of `AGGREGATORS`.
        like: the current model.
        sites: who is asked.
        attackers: how many bad updates to withstand; the mean withstands none.

    Raises:
        ConfigError: there is no such rule, or there are too few sites for it.
    """
    if name not in AGGREGATORS:
        raise ConfigError(f"federation.aggregator: {name} - one of {', '.join(AGGREGATORS)}")
    if attackers < 0:
        raise ConfigError(f"federation.tolerated_sites: {attackers} - 0 or more")
    fewest = fewest_sites(name, attackers)
    if len(sites) < fewest:
        raise ConfigError(
            f"federation.aggregator: {name} needs {fewest} sites to withstand {attackers} "
            f"(federation.tolerated_sites), and there are {len(sites)} - take part with more, or choose another rule"
        )
    if name == "mean":
        return Mean(like)
    if name == "norm_clipping":
        return NormClipping(like, attackers, fewest)
    if name in ("trimmed_mean", "median"):
        return TrimmedMean(like, attackers if name == "trimmed_mean" else len(sites), fewest)
    return Krum(like, attackers, fewest, single=name == "krum")
