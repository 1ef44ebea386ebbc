"""The sites that take part in a job, and how they are asked: quorum, time limit and grace in one place."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from fl_app.config import FederationSettings
from fl_app.errors import FederationError
from fl_app.ledger import TRAIL, Ledger, traces
from fl_app.messages import PREPARE, SiteReady
from fl_app.versions import incompatibility
from server.channel import Answer, Channel, Payload, Values
from server.exchange import Exchange
from server.record import Record

_MOST_STARTS = 4


class Participants:
    """Sites that have checked and prepared their data for the job.

    Args:
        channel: how they are reached.
        settings: quorum, time limit and grace.
        record: where it is written down who takes part.
        rounds: the last finished round of each network, as things stand.
        clock: seconds, monotonic.

    Attributes:
        ready: what each site said of itself, when it first took part.
        cases: training cases of each site, as it declared them then.
        absent: who was invited and has not answered yet; they can still come.
    """

    def __init__(
        self,
        channel: Channel,
        settings: FederationSettings,
        record: Record,
        rounds: Callable[[], Mapping[str, int]],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._channel = channel
        self._settings = settings
        self._record = record
        self._rounds = rounds
        self._clock = clock
        self._trail = Ledger(record.path.parent / TRAIL)
        self.ready: dict[str, SiteReady] = {}
        self.cases: dict[str, int] = {}
        self.absent: list[str] = []
        self._returned: dict[str, SiteReady] = {}
        self._starts: Counter[str] = Counter()

    @property
    def names(self) -> list[str]:
        """Names, sorted."""
        return sorted(self.ready)

    def prepare(self, invited: Sequence[str], wait: bool = False) -> None:
        """Have every invited site check and prepare its data, and build its network.

        Args:
            invited: their names.
            wait: for every site that gives signs of life, not only for the grace time: nobody can come later.

        Raises:
            FederationError: too few sites can take part.
        """

        def answer(site: str, values: Values, report: dict[str, object]) -> str | None:
            return self._admit(site, report)

        grace = self._settings.round_time_limit_s if wait else None
        exchange = self.ask(PREPARE, dict.fromkeys(sorted(invited), Payload()), answer, grace)
        # who took part before the server was ended may have failed for a moment only
        known = {*exchange.unanswered, *self._record.result.sites}
        self.absent = [site for site in exchange.left_out if site in known]
        self._record.result.refused = dict(exchange.left_out)
        self.require_quorum(exchange, "before the first round")

    def ask(self, task: str, payloads: Mapping[str, Payload], answer: Answer, grace: float | None = None) -> Exchange:
        """Send a task and take the answers as they come, until the exchange is over.

        Args:
            task: what to do.
            payloads: what each site gets.
            answer: takes a site's answer.
            grace: seconds to wait for others after the quorum; none: as the job says.
        """

        def take(site: str, values: Values, report: dict[str, Any]) -> str | None:
            trace = traces(values)
            ready = report.pop("ready", None)
            reason = (self._admit(site, ready) if ready else None) or answer(site, values, report)
            self._trail.write("refused" if reason else "accepted", task=task, site=site, reason=reason, **trace)
            return reason

        exchange = Exchange(
            list(payloads),
            self._settings.min_sites or len(payloads),
            self._settings.round_time_limit_s,
            self._settings.grace_s if grace is None else grace,
            patient=task == PREPARE,
            clock=self._clock,
        )
        # sites that shared a payload still share one
        complete = {id(each): self._complete(task, each) for each in payloads.values()}
        for payload in {id(each): each for each in payloads.values()}.values():
            self._sent(task, [site for site, each in payloads.items() if each is payload], payload)
        self._channel.ask(task, {site: complete[id(each)] for site, each in payloads.items()}, exchange, take)
        for site in exchange.good:
            self._starts.pop(site, None)
        for site in exchange.unanswered:
            if self._starts[site]:
                exchange.left_out[site] = (
                    "its process ended in the middle of its work - a crash, or its system had no memory left: "
                    "its engineer finds more in the site's own log"
                )
        return exchange

    def _complete(self, task: str, payload: Payload) -> Payload:
        """The payload with what every task brings."""
        facts = {**payload.facts, "rounds": dict(self._rounds())}
        whole = payload.whole
        if whole is None:
            return Payload(payload.values, facts)

        def again(site: str) -> Payload:
            resent = whole(site)
            self._sent(task, [site], resent)
            return self._complete(task, resent)

        return Payload(payload.values, facts, again)

    def _sent(self, task: str, sites: Sequence[str], payload: Payload) -> None:
        facts = {key: payload.facts.get(key) for key in ("network", "round")}
        self._trail.write("sent", task=task, sites=", ".join(sites), **facts, **traces(payload.values))

    def started(self, site: str) -> None:
        """A site's process has been started anew."""
        self._starts[site] += 1

    def gave_up(self, site: str) -> bool:
        """Whether a site's process was started anew so often, without one good answer, that it makes no sense."""
        return self._starts[site] >= _MOST_STARTS

    def _admit(self, site: str, report: dict[str, Any]) -> str | None:
        """A site has prepared itself, at first or after it was started anew; why it may not take part, or none."""
        # first of all: another version's report may look different
        versions = report.get("versions", {})
        refusal = incompatibility(str(versions.get("fedspleen", "")) if isinstance(versions, dict) else "")
        if refusal:
            return refusal
        told = SiteReady.model_validate(report)
        if self._returned.get(site) == told:
            return None
        self._returned[site] = told
        if site in self.ready:
            self._record.site_returned(site, told)
            return None
        self.ready[site], self.cases[site] = told, told.training_cases
        if site in self.absent:
            self.absent.remove(site)
            self._record.site_returned(site, told)
        self._record.site_ready(site, told)
        return None

    def require_quorum(self, exchange: Exchange, when: str) -> None:
        """Raise a `FederationError` that gives every site's reason, if too few answered well."""
        if not exchange.reached_quorum:
            reasons = "; ".join(f"{site}: {reason}" for site, reason in sorted(exchange.left_out.items()))
            raise FederationError(
                f"{len(exchange.good)} of {len(exchange.sites)} sites could take part {when}, "
                f"{exchange.quorum} are needed (federation.min_sites). {reasons}"
            )
