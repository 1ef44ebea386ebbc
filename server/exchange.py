"""When a round is over: all have answered, or the quorum has and the others are gone or late, or the time is up.

The one time that a job sets is ``federation.round_time_limit_s``; all waits follow from it and from what is measured.

- A site that works sends a sign of life every 2 s, with the steps that it has done. It is *silent* when none has come
  for a thirtieth of the round's time limit, at least 10 s and at most 60 s; and if its signs come slower than that
  (a slow line, a machine that swaps), for 3 times the longest gap that was seen between two of them in this exchange.
- Once the quorum has answered, silent sites are not waited for; others have ``federation.grace_s``. A slow site that
  sends signs is never silent.
- As long as the quorum has not answered, silent sites are waited for until the round's time limit: a hospital's
  machine may come back, and then gets the same task again.
- A site whose signs go on but whose steps do not (a training that hangs) is ended by the round's time limit.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Sequence

_SILENT_SHARE, _LEAST_SILENCE_SECONDS, _MOST_SILENCE_SECONDS, _GAPS = 1 / 30, 10.0, 60.0, 3
_logger = logging.getLogger(__name__)


class Exchange:
    """Keeps count of the answers to one task.

    Args:
        sites: who was asked.
        quorum: how many good answers are enough.
        time_limit: seconds from the start until the exchange ends in any case.
        grace: seconds to wait for the others once the quorum has answered.
        patient: wait for everyone's answer even when the quorum can no longer be reached, to hear all reasons.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        sites: Sequence[str],
        quorum: int,
        time_limit: float,
        grace: float,
        patient: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.sites = tuple(sites)
        self.quorum = quorum
        self.left_out: dict[str, str] = {}
        self.unanswered: list[str] = []
        self.good: list[str] = []
        self.closed = False
        self._lock = threading.Lock()
        self._clock = clock
        self._end = clock() + time_limit
        self._time_limit = time_limit
        self._grace = grace
        self._silence = min(_MOST_SILENCE_SECONDS, max(_LEAST_SILENCE_SECONDS, _SILENT_SHARE * time_limit))
        self._patient = patient
        self._heard: dict[str, float] = {}
        self._longest_gap: dict[str, float] = {}
        self._steps: dict[str, int] = {}
        self._quorum_end: float | None = None

    def receive(self, site: str, take: Callable[[], str | None]) -> str | None:
        """Take a site's answer, one at a time and only if it is still awaited.

        Args:
            site: whose answer.
            take: uses the answer, or says why it cannot be used. Whatever it raises is such a reason too: no site
                may end the job of the others.

        Returns:
            Why the answer does not count, or none.
        """
        with self._lock:
            if not self._awaits(site):
                return "it answered again, or after the round was over"
            try:
                reason = take()
            except Exception as error:
                _logger.warning(f"{site} sent what cannot be read", exc_info=True)
                reason = (
                    f"its answer does not follow the contract: {(str(error) or type(error).__name__).splitlines()[0]}"
                )
            if reason:
                self.leave_out(site, reason)
            else:
                self.accept(site)
            return reason

    def accept(self, site: str) -> None:
        """A site's answer was good; only the first one counts, and none after the end."""
        if not self._awaits(site):
            return
        self.good.append(site)
        if len(self.good) >= self.quorum and self._quorum_end is None:
            self._quorum_end = self._clock() + self._grace

    def leave_out(self, site: str, reason: str) -> None:
        """A site's answer cannot be used; likewise."""
        if self._awaits(site):
            self.left_out[site] = reason

    def heard(self, site: str, steps: int = 0) -> None:
        """A site has given a sign of life; from the first one on, it is silent if no others come.

        Args:
            site: who.
            steps: optimiser steps that it has done since it got the task.
        """
        now = self._clock()
        if not self.is_silent(site):  # the time that it was gone is no measure of its line
            gap = now - self._heard.get(site, now)
            self._longest_gap[site] = max(self._longest_gap.get(site, 0.0), gap)
        self._heard[site], self._steps[site] = now, steps

    @property
    def steps(self) -> dict[str, int]:
        """Optimiser steps of each site that works, as it has told them."""
        heard = self._steps.copy()
        return {site: heard[site] for site in self.waiting() if site in heard and not self.is_silent(site)}

    def missing(self, site: str) -> None:
        """A site is not connected."""
        self._heard.setdefault(site, -math.inf)

    def is_silent(self, site: str) -> bool:
        """Whether a site has given no sign for longer than it should; never, if its signs are not counted."""
        last = self._heard.get(site)
        limit = max(self._silence, _GAPS * self._longest_gap.get(site, 0.0))
        return last is not None and self._clock() - last > limit

    def is_over(self) -> bool:
        """Whether there is nothing more to wait for."""
        waiting = self.waiting()
        if not waiting or (not self._patient and len(self.good) + len(waiting) < self.quorum):
            return True
        now = self._clock()
        if self._quorum_end is None:
            return now >= self._end
        return now >= min(self._end, self._quorum_end) or all(self.is_silent(site) for site in waiting)

    def waiting(self) -> list[str]:
        """Who has not answered."""
        return [site for site in self.sites if site not in self.good and site not in self.left_out]

    def _awaits(self, site: str) -> bool:
        return not self.closed and site in self.waiting()

    def close(self) -> None:
        """No more answers count; who has not answered is left out, and why is said."""
        with self._lock:
            self._close()

    def _close(self) -> None:
        self.unanswered = self.waiting()
        for site in self.unanswered:
            if self.is_silent(site):
                self.left_out[site] = (
                    "its connection was lost: its machine, its client or the network in between is down"
                )
            elif self._clock() >= self._end:
                self.left_out[site] = (
                    f"it did not answer within {self._time_limit:g} s (federation.round_time_limit_s)"
                    + (f"; it had done {self._steps[site]} steps" if self._steps.get(site) else "")
                )
            elif len(self.good) >= self.quorum:
                self.left_out[site] = (
                    f"it did not answer within {self._grace:g} s after the quorum (federation.grace_s)"
                )
            else:
                self.left_out[site] = "it had not answered when the quorum could no longer be reached"
        self.closed = True

    @property
    def reached_quorum(self) -> bool:
        """Whether enough answers are good."""
        return len(self.good) >= self.quorum
