"""What is segmented, and how images are brought to one grid."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import Field, ValidationInfo, field_validator, model_validator

from fl_app.config.base import Fraction, Settings, Triple, mistake


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
            raise mistake("at least one organ, such as {spleen: 1}")
        if len(set(labels.values())) < len(labels):
            raise mistake("each organ its own value")
        bad = [name for name in labels if not re.fullmatch(r"[A-Za-z][\w -]{0,63}", name)]
        if bad or "background" in labels:
            raise mistake("organ names of letters, digits, spaces, '_' and '-'; background is implied")
        return labels

    @field_validator("spacing_mm")
    @classmethod
    def _spacing_is_plausible(cls, spacing: tuple[float, float, float]) -> tuple[float, float, float]:
        if not all(0.2 <= size <= 20 for size in spacing):
            raise mistake("three sizes between 0.2 and 20 mm")
        return spacing

    @field_validator("window_hu")
    @classmethod
    def _window_is_ordered(cls, window: tuple[float, float]) -> tuple[float, float]:
        if not window[0] < window[1]:
            raise mistake("[lower, upper] with lower < upper, such as [-160, 240]")
        return window

    @field_validator("patch_voxels")
    @classmethod
    def _patch_fits_network(cls, patch: tuple[int, int, int], info: ValidationInfo) -> tuple[int, int, int]:
        network = (info.context or {}).get("network")
        if network and "spacing_mm" in info.data and (problem := network.patch_problem(patch, info.data["spacing_mm"])):
            raise mistake(problem)
        return patch

    @model_validator(mode="after")
    def _training_cases_remain(self) -> DataSettings:
        if self.validation_fraction + self.test_fraction >= 1:
            raise mistake("validation_fraction and test_fraction that leave some cases for training (sum below 1)")
        return self
