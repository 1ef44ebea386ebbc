"""Every setting of a job, typed and validated. A job names no path of a site.

Reading a file, with all mistakes reported at their lines, is in ``config_file``.
"""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator
from pydantic_core import PydanticCustomError

Positive = Annotated[int, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
Probability = Annotated[float, Field(ge=0, le=1)]
Triple = tuple[Positive, Positive, Positive]


class Settings(BaseModel):
    """A section of a job: unknown keys are mistakes, values never change."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _truth_is_no_number(cls, value: object, info: ValidationInfo) -> object:
        number = cls.model_fields[str(info.field_name)].annotation in (int, float)
        if isinstance(value, bool) and number:
            raise _mistake("a number; YAML reads yes, no, on and off as true and false")
        return value


class DataSettings(Settings):
    """What is segmented, and how images are brought to one grid."""

    labels: dict[str, Annotated[int, Field(ge=1, le=65535)]] = Field(
        {"spleen": 1}, description="organ name: its value in the label files; every other value is background"
    )
    spacing_mm: tuple[float, float, float] = Field(
        (1.5, 1.5, 2.0), description="voxel size that all images are resampled to, x y z in mm (0.2 to 20)"
    )
    window_hu: tuple[float, float] = Field(
        (-160.0, 240.0), description="HU range that is mapped to 0..1; values outside are clipped"
    )
    patch_voxels: Triple = Field((96, 96, 96), description="size of a training patch, x y z in voxels")
    validation_fraction: Fraction = Field(0.15, description="share of a site's cases that selects the best model")
    test_fraction: Fraction = Field(0.2, description="share of a site's cases that is kept for the final test")
    reuse_cases: bool = Field(
        False,
        description="train, validate and test on the same cases: only to try the path, the Dice then proves nothing",
    )

    @field_validator("labels")
    @classmethod
    def _labels_are_distinct(cls, labels: dict[str, int]) -> dict[str, int]:
        if not labels:
            raise _mistake("at least one organ, such as {spleen: 1}")
        if len(set(labels.values())) < len(labels):
            raise _mistake("each organ its own value")
        bad = [name for name in labels if not re.fullmatch(r"[A-Za-z][\w -]{0,63}", name)]
        if bad or "background" in labels:
            raise _mistake("organ names of letters, digits, spaces, '_' and '-'; background is implied")
        return labels

    @field_validator("spacing_mm")
    @classmethod
    def _spacing_is_plausible(cls, spacing: tuple[float, float, float]) -> tuple[float, float, float]:
        if not all(0.2 <= size <= 20 for size in spacing):
            raise _mistake("three sizes between 0.2 and 20 mm")
        return spacing

    @field_validator("window_hu")
    @classmethod
    def _window_is_ordered(cls, window: tuple[float, float]) -> tuple[float, float]:
        if not window[0] < window[1]:
            raise _mistake("[lower, upper] with lower < upper, such as [-160, 240]")
        return window

    @field_validator("patch_voxels")
    @classmethod
    def _patch_divides(cls, patch: tuple[int, int, int], info: ValidationInfo) -> tuple[int, int, int]:
        check_patch(patch, (info.context or {}).get("patch_multiple", 1))
        return patch

    @model_validator(mode="after")
    def _training_cases_remain(self) -> DataSettings:
        if self.validation_fraction + self.test_fraction >= 1:
            raise _mistake("validation_fraction and test_fraction that leave some cases for training (sum below 1)")
        return self


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
            raise _mistake("2 to 7 levels")
        return channels

    @property
    def halvings(self) -> int:
        """How many times the network halves the resolution."""
        return len(self.channels) - 1 if self.name == "unet" else 3

    @property
    def patch_multiple(self) -> int:
        """What each side of a patch must be a multiple of, in voxels."""
        return int(2**self.halvings)


class AugmentationSettings(Settings):
    """Random changes to each training patch; 0 switches one off."""

    flip_probability: tuple[Probability, Probability, Probability] = Field(
        (0.0, 0.0, 0.0), description="chance of mirroring along x, y, z; x makes left and right alike"
    )
    intensity_scale: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.1, description="intensities are multiplied by 1 - s to 1 + s"
    )
    intensity_shift: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.1, description="intensities are shifted by -s to s, in units of the HU window"
    )
    noise: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.0, description="standard deviation of added Gaussian noise, in units of the HU window"
    )


class TrainingSettings(Settings):
    """How each site trains, between two exchanges."""

    loss: Literal["dice_ce", "dice", "dice_focal"] = Field(
        "dice_ce", description="dice_ce: soft Dice plus cross-entropy; dice; dice_focal: Dice plus focal loss"
    )
    optimizer: Literal["novograd", "adam", "adamw", "sgd"] = Field(
        "novograd", description="sgd uses Nesterov momentum 0.99, as nnU-Net does"
    )
    learning_rate: Annotated[float, Field(gt=0, le=10)] = Field(0.002, description="at the start of the job")
    schedule: Literal["constant", "cosine", "polynomial"] = Field(
        "cosine",
        description="how the learning rate falls over the whole job; polynomial: power 0.9 as nnU-Net",
    )
    weight_decay: Annotated[float, Field(ge=0, le=1)] = Field(0.0, description="L2 penalty or decoupled decay")
    steps_per_round: Annotated[int, Field(ge=0)] = Field(
        100,
        description="optimiser steps of each site in a round; 0: none, which measures the federation alone",
    )
    batch_size: Positive = Field(2, description="patches in a step")
    foreground_share: Probability = Field(0.5, description="share of patches centred on an organ; the rest in the body")
    precision: Literal["auto", "bf16", "fp16", "fp32"] = Field(
        "auto",
        description="auto: bf16 where the device computes it fast, else fp16 on GPU and fp32 on CPU; fp16 scales "
        "gradients and needs a GPU; fp32: mixed precision off",
    )
    gradient_clip: Annotated[float, Field(ge=0)] = Field(12.0, description="largest norm of the gradient; 0: no limit")
    deterministic: bool = Field(
        False, description="same seed, same machine: the same weights, bit for bit; may be slower on a GPU"
    )
    augmentation: AugmentationSettings = Field(default_factory=AugmentationSettings)


class EvaluationSettings(Settings):
    """How predictions are made and scored."""

    overlap: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.25,
        description="share by which neighbouring windows overlap; their predictions blend with Gaussian weights",
    )
    surface_tolerance_mm: Annotated[float, Field(gt=0)] = Field(
        3.0, description="normalised surface distance: a surface point within this many mm counts as right"
    )


class FederationSettings(Settings):
    """How the sites' work becomes one model."""

    algorithm: Literal["fedavg", "fedprox"] = Field(
        "fedavg", description="fedprox adds proximal_mu / 2 * |w - w_global|^2 to each site's loss"
    )
    proximal_mu: Annotated[float, Field(ge=0)] = Field(0.01, description="fedprox only: strength of the pull")
    rounds: Positive = Field(20, description="exchanges between the sites and the server")
    weight_by: Literal["cases", "steps", "equal"] = Field(
        "cases",
        description="a site's weight in the average: its training cases, its steps, or the same for all",
    )
    normalisation: Literal["average", "local"] = Field(
        "average",
        description="average: normalisation layers, running statistics included, are averaged like the rest; "
        "local: they stay at each site (FedBN)",
    )
    min_sites: Annotated[int, Field(ge=0)] = Field(
        0, description="quorum: a round with fewer good updates ends the job; 0: every site must answer"
    )
    round_time_limit_s: Annotated[int, Field(ge=1)] = Field(
        3600, description="longest time for a round in seconds; then the quorum decides"
    )
    grace_s: Annotated[int, Field(ge=0)] = Field(
        30, description="once the quorum has answered, how many seconds the round waits for the others"
    )
    best_metric: str = Field(
        "val_dice", description="what selects the best model, averaged over the sites by validation cases"
    )

    @field_validator("best_metric")
    @classmethod
    def _metric_is_reported(cls, metric: str, info: ValidationInfo) -> str:
        reported = (info.context or {}).get("reported_metrics", ())
        if reported and metric not in reported:
            raise _mistake("a metric that the trainer reports: " + ", ".join(reported), reported)
        return metric


class Job(Settings):
    """One federated training, whole."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,39}$")] = Field(
        "spleen", description="lower-case letters, digits, '-' and '_', at most 40"
    )
    seed: Annotated[int, Field(ge=0, le=2**31)] = Field(0, description="of everything random")
    data: DataSettings = Field(default_factory=DataSettings)
    network: NetworkSettings = Field(default_factory=NetworkSettings)
    training: TrainingSettings = Field(default_factory=TrainingSettings)
    evaluation: EvaluationSettings = Field(default_factory=EvaluationSettings)
    federation: FederationSettings = Field(default_factory=FederationSettings)

    @model_validator(mode="after")
    def _patch_fits_network(self) -> Job:
        check_patch(self.data.patch_voxels, self.network.patch_multiple)
        return self


def check_patch(patch: tuple[int, int, int], multiple: int) -> None:
    """Raise if a side of the patch (voxels) does not divide by what the network needs."""
    if any(size % multiple for size in patch):
        nearest = [max(multiple, round(size / multiple) * multiple) for size in patch]
        raise _mistake(f"multiples of {multiple} for this network (nearest: {nearest})")


def _mistake(allowed: str, choices: tuple[str, ...] = ()) -> PydanticCustomError:
    """What is allowed instead; ``choices`` are names that a typing error is compared with."""
    return PydanticCustomError("allowed", "{allowed}", {"allowed": allowed, "choices": list(choices)})
