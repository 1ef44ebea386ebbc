"""The sites that take part in a job, and how they are asked: quorum, time limit and grace in one place."""

from __future__ import annotations

from collections.abc import Mapping

from fl_app.config import FederationSettings
from fl_app.errors import FederationError
from fl_app.messages import PREPARE, SiteReady
from fl_app.versions import incompatibility
from server.channel import Answer, Channel, Payload, Values
from server.exchange import Exchange
from server.record import Record


class Participants:
    """Sites that answered the first task well.

    Attributes:
        ready: what each site said of itself before the first round.
    """

    def __init__(self, channel: Channel, settings: FederationSettings) -> None:
        self._channel = channel
        self._settings = settings
        self.ready: dict[str, SiteReady] = {}

    @property
    def names(self) -> list[str]:
        """Names, sorted."""
        return sorted(self.ready)

    def prepare(self, invited: list[str], facts: Mapping[str, object], record: Record) -> None:
        """Have every invited site check and prepare its data, and build its network.

        Raises:
            FederationError: too few sites can take part.
        """

        def answer(site: str, values: Values, report: dict[str, object]) -> str | None:
            # first of all: another version's report may look different
            versions = report.get("versions", {})
            refusal = incompatibility(str(versions.get("fedspleen", "")) if isinstance(versions, dict) else "")
            if refusal:
                return refusal
            self.ready[site] = SiteReady.model_validate(report)
            record.site_ready(site, self.ready[site])
            return None

        payload = Payload(facts=facts)
        exchange = self.ask(PREPARE, dict.fromkeys(sorted(invited), payload), answer)
        record.result.refused = dict(exchange.left_out)
        self.require_quorum(exchange, "before the first round")

    def ask(self, task: str, payloads: Mapping[str, Payload], answer: Answer) -> Exchange:
        """Send a task and take the answers as they come, until the exchange is over."""
        exchange = Exchange(
            list(payloads),
            self._settings.min_sites or len(payloads),
            self._settings.round_time_limit_s,
            self._settings.grace_s,
            patient=task == PREPARE,
        )
        self._channel.ask(task, payloads, exchange, answer)
        return exchange

    def require_quorum(self, exchange: Exchange, when: str) -> None:
        """Raise a `FederationError` that gives every site's reason, if too few answered well."""
        if not exchange.reached_quorum:
            reasons = "; ".join(f"{site}: {reason}" for site, reason in sorted(exchange.left_out.items()))
            raise FederationError(
                f"{len(exchange.good)} of {len(exchange.sites)} sites could take part {when}, "
                f"{exchange.quorum} are needed (federation.min_sites). {reasons}"
            )
