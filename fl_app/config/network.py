"""The network that all sites train."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator

from fl_app.config.base import Positive, Settings, mistake


class NetworkSettings(Settings):
    """The network that all sites train."""

    name: Literal["unet", "segresnet"] = Field(
        "unet", description="unet: MONAI's residual U-Net; segresnet: MONAI's SegResNet"
    )
    channels: tuple[Positive, ...] = Field(
        (16, 32, 64, 128, 256),
        description="unet: feature maps at each level, halving the resolution between levels; "
        "segresnet: takes the first as its initial filters",
    )
    residual_units: Annotated[int, Field(ge=0, le=8)] = Field(2, description="unet: residual units a level")
    normalisation: Literal["instance", "batch", "group"] = Field(
        "instance",
        description="instance and group keep no running statistics; batch does (see federation.normalisation)",
    )
    dropout: Annotated[float, Field(ge=0, lt=1)] = Field(0.0, description="share of features dropped in training")

    @field_validator("channels")
    @classmethod
    def _levels_are_few(cls, channels: tuple[int, ...]) -> tuple[int, ...]:
        if not 2 <= len(channels) <= 7:
            raise mistake("2 to 7 levels")
        return channels

    @property
    def halvings(self) -> int:
        """How many times the network halves the resolution."""
        return len(self.channels) - 1 if self.name == "unet" else 3

    @property
    def patch_multiple(self) -> int:
        """What each side of a patch must be a multiple of, in voxels."""
        return int(2**self.halvings)
