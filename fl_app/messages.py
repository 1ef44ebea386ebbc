"""The contract of the wire: which tasks the server sends, and what a site answers.

    task       to the site                              back from the site
    prepare    nothing                                  SiteReady: counts, device, versions
    train      round, values of the model before it     TrainReport + differences of the values, weighted later
    validate   values of the last model                 ValidationReport
    test       values of the best model                 TestReport

Values and differences are torch tensors by name (CPU, float32). Everything else is one of the reports below,
sent as a plain dictionary and validated on arrival. No report holds a path, a file or case name, a header field or
a value of a single case. A site that cannot do a task answers with a `SiteFailure`, whose text is fixed.
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

PREPARE, TRAIN, VALIDATE, TEST = "prepare", "train", "validate", "test"
BELL_TOPIC = "fedspleen.task_ready"  # an empty message: the server has a task, ask for it
PROGRESS = "fedspleen"  # under this name FLARE's show_stats tells an administrator the growing result
TASKS = (PREPARE, TRAIN, VALIDATE, TEST)


def _check_printable(text: str) -> str:
    if not text.isprintable():
        raise ValueError("only characters that can be printed")
    return text


Count = Annotated[int, Field(ge=0, le=10**9)]
Seconds = Annotated[float, Field(ge=0, le=10**8)]
Score = Annotated[float, Field(ge=0, le=1)]
# it stands in the server's log, in result.json and on the lead's screen: one short line, and no control characters
Word = Annotated[str, Field(max_length=100), AfterValidator(_check_printable)]


class Report(BaseModel):
    """What a site says beside tensors."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class SiteReady(Report):
    """The site's data passed its checks and its network is built."""

    training_cases: Count
    validation_cases: Count
    test_cases: Count
    warnings: Count = Field(description="how many findings of the data check were not errors")
    device: Word
    precision: Literal["bf16", "fp16", "fp32"]
    versions: Annotated[dict[Word, Word], Field(max_length=50)]
    seconds: Seconds


class Validation(Report):
    """Scores of a model on a site's validation cases."""

    cases: Count
    metrics: Annotated[dict[Word, Score | None], Field(max_length=1000)] = Field(
        description="by name; none where no case holds the organ"
    )
    seconds: Seconds


class TrainReport(Report):
    """One round of local training; the differences travel beside it."""

    round: Annotated[int, Field(ge=1)]
    loss: float | None = Field(description="mean over the steps; none if there were no steps")
    steps: Count
    training_cases: Count
    training_seconds: Seconds
    received: Validation = Field(description="of the model that the round began with")


class ValidationReport(Report):
    """Scores of the model that was sent."""

    received: Validation


class Spread(Report):
    """Mean and standard deviation over a site's cases."""

    mean: Score | None
    std: Score | None
    cases: Count


class TestReport(Report):
    """Scores of the best model on a site's test cases, by organ."""

    __test__ = False  # not a test, whatever pytest thinks of the name

    dice: Annotated[dict[Word, Spread], Field(max_length=1000)]
    surface_dice: Annotated[dict[Word, Spread], Field(max_length=1000)]
    seconds: Seconds

    @model_validator(mode="after")
    def _scores_are_of_the_same_organs(self) -> TestReport:
        if self.dice.keys() != self.surface_dice.keys():
            raise ValueError("dice and surface_dice must be of the same organs")
        return self


class SiteFailure(Report):
    """Why a site could not do a task, without a word about its data."""

    kind: Literal["data", "training", "memory", "disk", "configuration", "internal"]

    @property
    def sentence(self) -> str:
        """The reason and what to do."""
        return _FAILURES[self.kind]


_FAILURES = {
    "data": "its data cannot be used - its engineer finds each problem and its remedy in the site's own log",
    "training": "its training diverged - lower training.learning_rate, or set training.precision: fp32",
    "memory": "it ran out of memory - lower training.batch_size or data.patch_voxels, or give the site more",
    "disk": "it cannot read or write a file it needs - its engineer finds which in the site's own log",
    "configuration": "the job does not fit the site's device or software - the site's own log says what",
    "internal": "an unexpected error, written to the site's own log - please report it",
}


def payload_bytes(values: dict[str, torch.Tensor]) -> int:
    """Size of tensors on the wire, in bytes, without framing."""
    return sum(value.numel() * value.element_size() for value in values.values())
