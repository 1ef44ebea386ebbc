"""What each site makes of the federated model for itself."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from fl_app.config.base import Settings, Share


class PersonalSettings(Settings):
    """Personal models. Each site keeps the best of all by its own validation cases, the federated one included."""

    fine_tuning_steps: Annotated[int, Field(ge=0)] = Field(
        0, description="optimiser steps at each site after the last round; 0: none"
    )
    fine_tuning_shares: Annotated[tuple[Share, ...], Field(min_length=1)] = Field(
        (0.25, 0.5, 0.75, 1.0),
        description="how far from the federated weights to the tuned ones a site may go; the best by its validation "
        "cases is kept, or none",
    )
    fine_tuning_rate: Share = Field(
        0.5, description="the learning rate to start with, as a share of training.learning_rate; it falls to 0"
    )
    ditto: Annotated[float, Field(ge=0)] = Field(
        0.0,
        description="strength of Ditto's pull towards the federated model; each site also trains a model of its own, "
        "with as many steps; 0: no Ditto",
    )

    @property
    def wanted(self) -> bool:
        """Whether sites make personal models."""
        return bool(self.fine_tuning_steps or self.ditto)
