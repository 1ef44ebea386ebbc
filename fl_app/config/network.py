"""The network that all sites train."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from pydantic import Field, ValidationInfo, field_validator

from fl_app.config.base import Positive, Settings, mistake
from fl_app.config.plan import plan_unet

# the settings that each network has, with their defaults
_CHANNELS = (16, 32, 64, 128, 256)
_HAS: dict[str, dict[str, Any]] = {
    "unet": {"channels": _CHANNELS, "residual_units": 2, "normalisation": "instance", "dropout": 0.0},
    "segresnet": {"channels": _CHANNELS, "normalisation": "instance", "dropout": 0.0},
    "dynunet": {"size": "medium", "normalisation": "instance"},
    "vnet": {"normalisation": "batch", "dropout": 0.0},
    "ahnet": {"size": "medium", "normalisation": "batch"},
    "unetr": {"size": "medium", "normalisation": "instance", "dropout": 0.0},
    "swinunetr": {"size": "medium", "normalisation": "instance", "dropout": 0.0},
    "dints": {"size": "medium", "normalisation": "instance"},
}
# MONAI's V-Net and AH-Net are written with batch normalisation
_BATCH_ONLY = ("vnet", "ahnet")
_HALVINGS = {"segresnet": 3, "vnet": 4, "ahnet": 5, "unetr": 4, "swinunetr": 5}
# networks that normalise maps as small as the patch divided by its multiple
_NORMALISES_INNERMOST = ("unet", "segresnet", "vnet", "ahnet", "swinunetr")


def network_sizes() -> dict[str, tuple[str | None, ...]]:
    """The sizes that each network comes in; (None,) where it has other settings, or none, for its size."""
    usual = ("small", "medium", "large")
    sized = {name: usual if "size" in has else (None,) for name, has in _HAS.items()}
    return {**sized, "dynunet": ("tiny", *usual)}


class NetworkSettings(Settings):
    """The network that all sites train. A setting that the chosen network does not have is None."""

    name: Literal["unet", "segresnet", "dynunet", "vnet", "ahnet", "unetr", "swinunetr", "dints"] = Field(
        "unet",
        description="MONAI's networks. unet: residual U-Net; dynunet: nnU-Net's, planned from data.patch_voxels and "
        "data.spacing_mm; dints: a fixed network of DiNTS's search space",
    )
    size: Literal["tiny", "small", "medium", "large"] | None = Field(
        None,
        validate_default=True,
        description="small, medium or large; dynunet (also tiny), ahnet, unetr, swinunetr, dints (docs/networks.md)",
    )
    channels: tuple[Positive, ...] | None = Field(
        None,
        validate_default=True,
        description="unet: feature maps at each level, halving the resolution between levels; "
        "segresnet: takes the first as its initial filters",
    )
    residual_units: int | None = Field(
        None, ge=0, le=8, validate_default=True, description="unet: residual units a level"
    )
    normalisation: Literal["instance", "batch", "group"] = Field(
        None,
        validate_default=True,
        description="instance and group keep no running statistics; batch does (see federation.normalisation); "
        "vnet and ahnet have batch only",
    )
    dropout: float | None = Field(
        None,
        ge=0,
        lt=1,
        validate_default=True,
        description="share of features dropped in training; unet, segresnet, vnet, unetr and swinunetr",
    )

    @field_validator("size", "channels", "residual_units", "normalisation", "dropout", mode="before")
    @classmethod
    def _network_has_it(cls, value: object, info: ValidationInfo) -> object:
        name = info.data.get("name")
        if name is None:  # the name is the mistake; for all else the U-Net's rules stand in
            name = "unet"
        default = _HAS[name].get(str(info.field_name))
        if value is None:
            return default
        if default is None:
            raise mistake(f"no setting of {name}, which has {', '.join(_HAS[name])}; leave it out")
        return value

    @field_validator("size")
    @classmethod
    def _network_comes_in_it(cls, size: str | None, info: ValidationInfo) -> str | None:
        name = info.data.get("name", "unet")
        sizes = network_sizes()[name]
        if size not in sizes:
            raise mistake(f"one of {', '.join(map(str, sizes))}: {name} has no other")
        return size

    @field_validator("channels")
    @classmethod
    def _levels_are_few(cls, channels: tuple[int, ...] | None) -> tuple[int, ...] | None:
        if channels is not None and not 2 <= len(channels) <= 7:
            raise mistake("2 to 7 levels")
        return channels

    @field_validator("normalisation")
    @classmethod
    def _network_can_use_it(cls, normalisation: str, info: ValidationInfo) -> str:
        name = info.data.get("name")
        if name in _BATCH_ONLY and normalisation != "batch":
            raise mistake(f"batch: MONAI's {name} has no other")
        return normalisation

    def patch_multiples(self, patch: Sequence[int], spacing_mm: Sequence[float]) -> tuple[int, ...]:
        """What each side of a patch must be a multiple of, in voxels; dynunet's depend on the patch and its spacing."""
        if self.name == "dynunet":
            return plan_unet(patch, spacing_mm).multiples
        if self.name == "unet":
            assert self.channels is not None  # every U-Net has them
            halvings = len(self.channels) - 1
        elif self.name == "dints":
            halvings = 5 if self.size == "large" else 4
        else:
            halvings = _HALVINGS[self.name]
        return (2**halvings,) * len(patch)

    def patch_problem(self, patch: Sequence[int], spacing_mm: Sequence[float]) -> str | None:
        """What would be right instead of a patch (voxels) at this spacing, or None where it is right."""
        multiples = self.patch_multiples(patch, spacing_mm)
        named = str(multiples[0]) if len(set(multiples)) == 1 else str(list(multiples))
        if any(size % multiple for size, multiple in zip(patch, multiples, strict=True)):
            nearest = [max(each, round(size / each) * each) for size, each in zip(patch, multiples, strict=True)]
            return f"multiples of {named} for this network (nearest: {nearest})"
        if self.name == "dynunet" and plan_unet(patch, spacing_mm).halvings < 2:
            return f"larger multiples of {named} for this network: nnU-Net's rules halve so small a patch only once"
        if self.name in _NORMALISES_INNERMOST and self.normalisation != "group" and tuple(patch) == multiples:
            return f"multiples of {named} for this network, of which at least one {2 * multiples[0]} or more: its \
innermost map would be a single voxel, which normalises to nothing"
        return None
