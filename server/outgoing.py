"""What the sites are sent of a model: all of it, or its change in the last round, if they hold the one before."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from fl_app.ledger import digest
from fl_app.transfer import Rounding, decode
from server.channel import Payload, Values

Names = tuple[str, ...]


class Outgoing:
    """Keeps the change of the last round as it travels. The server's model is what it has become at the sites.

    Args:
        bits: of each value (``federation.transfer_bits``).
        untrained: whether the model is the one that sites build themselves, from the job's seed.
        rest: `rest` before the server was started again.
    """

    def __init__(self, bits: int, untrained: bool, rest: Values) -> None:
        self._rounding = Rounding(bits) if bits < 32 else None
        if self._rounding:
            self._rounding.rest = rest
        self._untrained = untrained
        self._change: Values = {}
        # SHA-256 of the values that travel together, in the model before that change and in the one after it
        self._before: dict[Names, str] = {}
        self._after: dict[Names, str] = {}

    @property
    def rest(self) -> Values:
        """What was rounded off so far; it goes with the next change."""
        return self._rounding.rest if self._rounding else {}

    def settle(self, before: Mapping[str, torch.Tensor], after: Values) -> Values:
        """The model after a round, as the sites will have it.

        Args:
            before: the model that the round began with.
            after: what aggregation made of it.
        """
        if self._rounding is None:
            return after
        self._change = self._rounding.encode({name: after[name] - value for name, value in before.items()})
        self._before, self._after, self._untrained = self._after, {}, False
        change = decode(self._change, {name: value.shape for name, value in before.items()}, self._rounding.bits)
        return {name: value + change[name] for name, value in before.items()}

    def payload(
        self,
        model: Values,
        held: Names,
        own: Sequence[str],
        facts: Mapping[str, Any],
        resent: Callable[[str], None],
    ) -> Payload:
        """What a task brings.

        Args:
            model: everything in the network, as it stands.
            held: names of the values that travel in each round.
            own: names of those that a site holds alone and that it gets now.
            facts: what goes with them.
            resent: told the name of each site that gets the model whole because it does not hold the one before.
        """
        values = {name: model[name] for name in (*held, *own)}
        if self._rounding is None:
            return Payload(values, facts)
        if held not in self._after:
            self._after[held] = digest({name: model[name] for name in held})
        whole = Payload(values, {**facts, "model": self._after[held]})
        before = self._after[held] if self._untrained else self._before.get(held)
        if before is None or own:
            return whole

        def again(site: str) -> Payload:
            resent(site)
            return whole

        change = {name: self._change[name] for name in held} if self._change else {}
        return Payload(change, {**whole.facts, "before": before}, again)
