"""How the workflow reaches the sites, whatever carries it: FLARE, or plain calls within one process."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

from server.exchange import Exchange

Values = dict[str, torch.Tensor]
Answer = Callable[[str, Values, dict[str, Any]], str | None]  # site, values, report: why it is left out, or none


@dataclass(frozen=True)
class Payload:
    """What a task brings to a site.

    Attributes:
        values: tensors by name.
        facts: a few plain ones.
        whole: if the values are the change of a model: what a site gets that does not hold it, by the site's name.
    """

    values: Values = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)
    whole: Callable[[str], Payload] | None = None


class Channel(Protocol):
    """Carries one task at a time."""

    def ask(self, task: str, payloads: Mapping[str, Payload], exchange: Exchange, answer: Answer) -> None:
        """Send each site its payload, hand on what comes back, and return once the exchange is over.

        Answers go through `Exchange.receive`, one at a time; sites that share a payload share the object.

        Raises:
            FederationError: the job was aborted.
        """
