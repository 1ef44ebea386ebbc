"""The guard in front of the aggregate: an update gets in whole, or is left out with one sentence that says why."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from server.aggregation.update import fault, norm

# Honest norms differ by a small factor between sites; attacks that matter need large ones (Sun et al., "Can You Really
# Backdoor Federated Learning?", 2019, section 4, bounds the norm for this reason). With a cosine schedule the last
# round's are a seventh of those of the round before: older rounds would let in what is far too long.
_REMEMBERED_ROUNDS = 5
_FEWEST_NORMS = 3  # of earlier rounds: with fewer, a median says nothing


@dataclass(frozen=True)
class Claim:
    """What a site says of its update.

    Attributes:
        round: it trained in.
        steps: optimiser steps it took.
        cases: it trained on.
    """

    round: int
    steps: int
    cases: int


class Guard:
    """Decides which updates get in. One for each phase of a job, since it learns how long updates usually are.

    The length (Euclidean norm) of an update is compared with the median of those that got in during the last finished
    round, or the last few, if they are fewer than 3: one bad site among three or more does not move it far. Updates of
    the running round do not count, so that who answers first does not decide who is left out. In the first round (with
    two sites, in the first two) the median would say nothing; then an update is only left out if it is ``factor`` times
    as long as the model itself, which no training comes near. It is no defence against an attacker who knows the limit:
    a robust rule (`server.aggregation.rules`) is.

    Args:
        most_steps: optimiser steps that the job asks for in a round; 0: the job does not train.
        declared_cases: training cases of each site, as it declared them before the first round.
        factor: how many times the usual length is too long; 0: lengths are not compared.
        norms: `norms` of a guard before the server was started again.
    """

    def __init__(
        self,
        most_steps: int,
        declared_cases: Mapping[str, int],
        factor: float = 10.0,
        norms: Sequence[Mapping[str, float]] = (),
    ) -> None:
        self._most_steps = most_steps
        self._declared = declared_cases  # a site that comes late is added to it
        self._factor = factor
        self._finished = [dict(each) for each in norms]
        self._running: dict[str, float] = {}
        self._round = 0
        self._usual, self._usual_of = float("inf"), ""

    def begin(self, number: int, model: Mapping[str, torch.Tensor]) -> None:
        """A round begins.

        Args:
            number: of the round.
            model: the values that are sent to the sites.
        """
        if self._running:
            self._finished = [*self._finished, self._running][-_REMEMBERED_ROUNDS:]
        self._round, self._running = number, {}
        known: list[float] = []
        for lengths in reversed(self._finished):
            if len(known) < _FEWEST_NORMS:
                known += lengths.values()
        if len(known) >= _FEWEST_NORMS:
            self._usual, self._usual_of = statistics.median(known), "the sites' usual one"
        else:
            # 1: a part of the model that begins at zero may move, too
            self._usual, self._usual_of = norm(model) + 1, "the model itself"

    def admit(
        self,
        site: str,
        update: Mapping[str, torch.Tensor],
        claim: Claim,
        expected: Mapping[str, Sequence[int]],
    ) -> str | None:
        """Why an update is left out; none: it gets in, and is remembered.

        Args:
            site: whose it is.
            update: differences of the values, by name.
            claim: what the site says of it.
            expected: the shape of every value that this site was asked to train.
        """
        reason = self._claim(site, claim) or fault(update, expected)
        if reason:
            return reason
        length = norm(update)
        if self._factor and not length <= self._factor * self._usual:
            return (
                f"its update has length {length:.3g}, more than {self._factor:g} times (federation.norm_factor) "
                f"{self._usual_of}, {self._usual:.3g}"
            )
        self._running[site] = length
        return None

    @property
    def norms(self) -> list[dict[str, float]]:
        """The lengths of the last rounds' updates by site, to be kept with the checkpoint of the running round."""
        return [*self._finished, *([self._running] if self._running else [])][-_REMEMBERED_ROUNDS:]

    def _claim(self, site: str, claim: Claim) -> str | None:
        if site not in self._declared:
            return "it did not take part in the preparation"
        if claim.round != self._round:
            return f"it answered for round {claim.round}"
        if site in self._running:
            return "it answered twice"
        if claim.steps > self._most_steps:
            return f"it claims {claim.steps} steps, the job has {self._most_steps}"
        if self._most_steps and claim.steps <= 0:
            return "it took no training step"
        if claim.cases > self._declared[site]:
            return f"it claims {claim.cases} training cases, it declared {self._declared[site]}"
        return None
