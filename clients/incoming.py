"""The model that a task brings: whole, or as its change since the one that the site holds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from fl_app.ledger import digest
from fl_app.transfer import ModelNotHeldError, decode

Values = dict[str, torch.Tensor]


class Incoming:
    """Holds the last model that came.

    Args:
        bits: of each value of a change (``federation.transfer_bits``).
        untrained: the model that the site has built from the job's seed.
    """

    def __init__(self, bits: int, untrained: Values) -> None:
        self._bits = bits
        self._held = untrained if bits < 32 else {}
        self._digest = digest(self._held)

    def model(self, values: Values, facts: Mapping[str, Any]) -> Values:
        """The model, float32.

        Raises:
            ModelNotHeldError: it must be sent whole.
        """
        if self._bits == 32:
            return values
        if "before" in facts:
            if facts["before"] != self._digest:
                raise ModelNotHeldError
            change = decode(values, {name: value.shape for name, value in self._held.items()}, self._bits)
            values = {name: value + change[name] if change else value for name, value in self._held.items()}
            # whatever made it another one: a site never trains from a model that is not the server's
            if digest(values) != facts["model"]:
                raise ModelNotHeldError
        own = set(facts["own"])
        self._held = {name: value for name, value in values.items() if name not in own}
        self._digest = str(facts["model"])
        return values
