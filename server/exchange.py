"""When a round is over: all have answered, or the quorum has and the grace time is past, or the time is up."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence

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
        self.good: list[str] = []
        self.closed = False
        self._lock = threading.Lock()
        self._clock = clock
        self._end = clock() + time_limit
        self._time_limit = time_limit
        self._grace = grace
        self._patient = patient
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

    def is_over(self) -> bool:
        """Whether there is nothing more to wait for."""
        waiting = self.waiting()
        if not waiting or (not self._patient and len(self.good) + len(waiting) < self.quorum):
            return True
        now = self._clock()
        return now >= self._end or (self._quorum_end is not None and now >= self._quorum_end)

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
        for site in self.waiting():
            if self._clock() >= self._end:
                self.left_out[site] = f"it did not answer within {self._time_limit:g} s (federation.round_time_limit_s)"
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
