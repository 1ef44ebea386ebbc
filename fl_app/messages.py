"""The contract of the wire: which tasks the server sends, and what a site answers.

    task       to the site                              back from the site
    prepare    -                                        SiteReady: counts, device, versions
    train      round, values of the model before it     TrainReport + differences of the values, weighted later
               (fewer bits: their change; see `transfer`)
    validate   values of the last model                 ValidationReport
    test       values of the best model                 TestReport
    propose    a memory budget                          ProposeReport: the network that this site likes best in it
    score      networks of the search space, values     ScoreReport: how well each does at this site
    derive     the network for all, values              DeriveReport: this site's own network
    personalise  values of the best models              PersonalReport: this site's personal models

Every task also brings the last finished rounds, by network. A site whose process was started anew in mid-job prepares
itself from that before it does any other task, and puts its SiteReady, as ``ready``, beside its reports.

Values and differences are torch tensors by name (CPU, float32; or bytes: `fl_app.transfer`). Everything else is one of
the reports below, sent as a plain dictionary and validated on arrival. No report holds a path, a file or case name, a
header field or a value of a single case. A site that cannot do a task answers with a `SiteFailure` of fixed text.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

if TYPE_CHECKING:
    import torch  # takes a second, which what only follows a run need not wait

PREPARE, TRAIN, VALIDATE, TEST = "prepare", "train", "validate", "test"
PROPOSE, SCORE, DERIVE, PERSONALISE = "propose", "score", "derive", "personalise"
LOCKED_OUT = "is disabled"  # how FLARE ends its sentence to a site that was locked out
BELL_TOPIC = "fedspleen.task_ready"  # an empty message: the server has a task, ask for it
SIGN_TOPIC = "fedspleen.sign"  # a site is alive; how many steps it has done since it got the task
SIGN_SECONDS = 2.0  # between two such signs
WHOLE = "fedspleen_whole"  # in a reply: the site does not hold the model that the task's change begins at
SITE_TOPIC = "fedspleen.site"  # within the server: shall this site have the job again? has it got it?
PROGRESS = "fedspleen"  # under this name FLARE's show_stats tells an administrator the growing result
# which network a task is about: the job's own, the supernet of a search, those that were found
MAIN, SUPERNET, SEARCHED = "main", "supernet", "searched"
TASKS = (PREPARE, TRAIN, VALIDATE, TEST, PROPOSE, SCORE, DERIVE, PERSONALISE)


def _check_printable(text: str) -> str:
    if not text.isprintable():
        raise ValueError("only characters that can be printed")
    return text


Count = Annotated[int, Field(ge=0, le=10**9)]
Bytes = Annotated[int, Field(ge=0, le=10**15)]
Seconds = Annotated[float, Field(ge=0, le=10**8)]
Score = Annotated[float, Field(ge=0, le=1)]
# it stands in the server's log, in result.json and on the lead's screen: one short line, and no control characters
Word = Annotated[str, Field(max_length=100), AfterValidator(_check_printable)]


class Report(BaseModel):
    """What a site says beside tensors."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class MemoryFit(Report):
    """A site's own fit of `fl_app.networks.space.memory.MemoryModel`."""

    scale: Annotated[float, Field(gt=0, le=1000)]
    offset: Annotated[float, Field(ge=-(10**13), le=10**13)]
    value_bytes: Literal[2, 4]
    weight_copies: Annotated[float, Field(ge=1, le=8)]
    recompute: bool = False


Side = Annotated[int, Field(ge=1, le=4096)]


class Saving(Report):
    """What a site does to train a network within its memory budget."""

    recompute: bool = Field(False, description="it computes activations again in the backward pass")
    patch_share: Annotated[float, Field(ge=0.25, le=1)] = Field(
        1.0, description="sides of its training patches, as a share of data.patch_voxels"
    )
    early_update: bool = Field(False, description="it updates each weight when its gradient is known, and keeps none")
    frozen_share: Annotated[float, Field(ge=0, lt=1)] = Field(0.0, description="part of the weights that it leaves")
    window_voxels: tuple[Side, Side, Side] | None = Field(
        None, description="its windows in prediction; none: of data.patch_voxels"
    )

    @property
    def words(self) -> str:
        """As people say it; empty if it does nothing."""
        parts = ["activations computed again"] if self.recompute else []
        if self.early_update:
            parts.append("weights updated one by one")
        if self.patch_share < 1:
            parts.append(f"patches of {self.patch_share:.0%} of the sides")
        if self.frozen_share:
            parts.append(f"{self.frozen_share:.0%} of the weights left to other sites")
        if self.window_voxels:
            parts.append(f"windows of {' x '.join(map(str, self.window_voxels))} voxels in prediction")
        return ", ".join(parts)


class WidestNetwork(Report):
    """The job's own network, as wide as a site's memory allows."""

    eighths: Annotated[int, Field(ge=1, le=8)] = Field(description="of its channels")
    parameters: Count
    measured_bytes: Bytes = Field(description="its training memory")
    saving: Saving = Saving()


class SearchReady(Report):
    """What a site's memory holds in training, for a search."""

    budget_bytes: Bytes
    main_bytes: Bytes = Field(description="training memory of the job's own network")
    fit: MemoryFit | None = Field(None, description="only in a search of cells")
    widest: WidestNetwork | None = Field(None, description="only in a search of widths")

    @property
    def main_fits(self) -> bool:
        """Whether the job's own network can be trained within the budget."""
        return self.main_bytes <= self.budget_bytes


class SiteReady(Report):
    """The site's data passed its checks and its network is built."""

    training_cases: Count
    validation_cases: Count
    test_cases: Count
    warnings: Count = Field(description="how many findings of the data check were not errors")
    device: Word
    precision: Literal["bf16", "fp16", "fp32"]
    versions: Annotated[dict[Word, Word], Field(max_length=50)]
    restored: bool | None = Field(
        description="its optimiser and local layers as after its last round; none: nothing to restore",
    )
    saving: Saving = Field(description="to train the job's own network")
    search: SearchReady | None = Field(description="only if the job searches")
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
    memory_bytes: Bytes = Field(description="the most that the site's process has held, of the GPU if it has one")
    received: Validation | None = Field(description="of the model that the round began with; none for a supernet")
    touched: dict[str, Count] | None = Field(
        description="in how many steps each value was trained, if not all were; only these travel back"
    )


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


class ProposeReport(Report):
    """The network that a site's own logits like best; the logits stay where they are."""

    architecture: str = Field(max_length=100_000)


class ScoreReport(Report):
    """How well networks do at this site with the supernet's weights: mean loss over its validation cases."""

    losses: tuple[float | None, ...]
    cases: Count
    seconds: Seconds


class DeriveReport(Report):
    """The network that a site has chosen within its own memory budget."""

    architecture: str = Field(max_length=100_000)
    parameters: Count
    predicted_bytes: Bytes = Field(description="training memory by the site's fit")
    measured_bytes: Bytes = Field(description="training memory in a step that was taken")
    seconds: Seconds


class PersonalModel(Report):
    """One model that a site could keep, on its own cases."""

    validation: Validation
    test: TestReport
    parameters: Count
    memory_bytes: Bytes = Field(description="that training it takes; 0: not measured")
    steps: Count = Field(description="optimiser steps at this site beyond the federated rounds")


class PersonalReport(Report):
    """All models that a site could keep, and the one that it keeps: the best on its own validation cases."""

    models: Annotated[dict[str, PersonalModel], Field(min_length=1, max_length=20)]
    chosen: str
    seconds: Seconds

    @model_validator(mode="after")
    def _chosen_is_one_of_them(self) -> PersonalReport:
        if self.chosen not in self.models:
            raise ValueError("chosen must be one of the models")
        return self


class SiteFailure(Report):
    """Why a site could not do a task, without a word about its data."""

    kind: Literal["data", "training", "memory", "device", "disk", "configuration", "policy", "process", "internal"]

    @property
    def sentence(self) -> str:
        """The reason and what to do."""
        return _FAILURES[self.kind]


_FAILURES = {
    "data": "its data cannot be used - its engineer finds each problem and its remedy in the site's own log",
    "training": "its training diverged - lower training.learning_rate, or set training.precision: fp32",
    "memory": "it ran out of memory - set memory_budget_gib in its site.yaml, so that it trains in less, or lower "
    "training.batch_size or data.patch_voxels",
    "device": "its GPU failed, or has gone - its engineer looks after it and starts the site again",
    "disk": "it cannot read or write a file it needs - its engineer finds which in the site's own log",
    "configuration": "the job does not fit the site's device or software - the site's own log says what",
    "policy": "the site's own limits forbid this job - its engineer finds which in the site's own log",
    "process": "one of its training processes ended - its engineer finds in the site's own log which, and what to do",
    "internal": "an unexpected error, written to the site's own log - please report it",
}


def payload_bytes(values: dict[str, torch.Tensor]) -> int:
    """Size of tensors on the wire, in bytes, without framing."""
    return sum(value.numel() * value.element_size() for value in values.values())
