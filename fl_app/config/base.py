"""What every section of a settings file shares: unknown keys are mistakes, values never change."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

Positive = Annotated[int, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
Probability = Annotated[float, Field(ge=0, le=1)]
Triple = tuple[Positive, Positive, Positive]
Share = Annotated[float, Field(gt=0, le=1)]


class Settings(BaseModel):
    """A section of a job: unknown keys are mistakes, values never change."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _truth_is_no_number(cls, value: object, info: ValidationInfo) -> object:
        number = cls.model_fields[str(info.field_name)].annotation in (int, float, int | None, float | None)
        if isinstance(value, bool) and number:
            raise mistake("a number; YAML reads yes, no, on and off as true and false")
        return value


def mistake(allowed: str, choices: tuple[str, ...] = ()) -> PydanticCustomError:
    """What is allowed instead; ``choices`` are names that a typing error is compared with."""
    return PydanticCustomError("allowed", "{allowed}", {"allowed": allowed, "choices": list(choices)})
