"""``result.json``: what a run leaves, from its first second on. docs/result.md explains it."""

from __future__ import annotations

import json
import math
import platform
from collections.abc import Iterable
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fl_app.errors import DataError
from fl_app.files import replacing
from fl_app.messages import Saving, TestReport

SCHEMA_VERSION = 1
RESULT_VARIABLE = "FEDSPLEEN_RESULT"  # tells a job's server which folder its result goes to


class Part(BaseModel):
    """A part of the result; grows while the run goes on."""

    model_config = ConfigDict(extra="forbid")


class Site(Part):
    """A site as it introduced itself."""

    training_cases: int
    validation_cases: int
    test_cases: int
    data_warnings: int
    device: str
    precision: str
    versions: dict[str, str]
    preparation_seconds: float
    saving: Saving = Field(Saving(), description="what it does to train the job's network within its memory budget")


class SiteRound(Part):
    """What one site did in one round."""

    loss: float | None = Field(None, description="mean training loss; none without steps")
    steps: int = 0
    training_seconds: float = 0.0
    validation_seconds: float = Field(0.0, description="validating the model that the round began with")
    memory_bytes: int = Field(0, description="the most that the site's process had held by then")
    bytes_received: int = Field(0, description="tensors sent to the site")
    bytes_sent: int = Field(0, description="tensors sent by the site")
    weight: float = Field(0.0, description="share in the average, 0 to 1")
    dice: float | None = Field(None, description="validation Dice of the model after this round, at this site")
    metrics: dict[str, float | None] = Field(default_factory=dict, description="all validation metrics likewise")
    validation_cases: int = 0


class Round(Part):
    """One exchange."""

    number: int
    seconds: float = Field(0.0, description="from sending the model to the new one's being saved")
    sites: dict[str, SiteRound] = Field(default_factory=dict)
    left_out: dict[str, str] = Field(default_factory=dict, description="site: why its update is not in the model")
    remarks: dict[str, str] = Field(default_factory=dict, description="site: how its update does not count as it was")
    dice: float | None = Field(None, description="mean validation Dice of the model after this round")
    metrics: dict[str, float | None] = Field(default_factory=dict)


class SiteScores(Part):
    """Test scores of a model at one site; mean and standard deviation over its test cases."""

    cases: int
    dice: float | None
    dice_std: float | None
    surface_dice: float | None
    organs: dict[str, dict[str, float | None]] = Field(default_factory=dict)


class Final(Part):
    """The model that the run ends with, scored on held-out test cases."""

    model: Literal["best"] = "best"
    round: int
    best_metric: str
    best_value: float | None
    mean_dice: float | None = Field(description="over all test cases of all sites, and over organs")
    mean_dice_over_sites: float | None = Field(description="every site counts the same")
    mean_surface_dice: float | None
    sites: dict[str, SiteScores]
    left_out: dict[str, str] = Field(default_factory=dict)


class Baseline(Part):
    """A model trained without federation, with the same code."""

    trained_on: list[str]
    steps: int
    seconds: float
    sites: dict[str, SiteScores]
    mean_dice: float | None


class Generation(Part):
    """Candidates that the sites have scored together."""

    number: int
    scored: int = Field(description="networks")
    best_loss: float | None = Field(description="mean validation loss of the best so far, with the supernet's weights")
    seconds: float


class SearchSite(Part):
    """What the search gave one site."""

    budget_bytes: int
    main_bytes: int = Field(description="training memory of the job's own network at this site")
    architecture: str = Field("", description="as JSON")
    parameters: int = 0
    predicted_bytes: int = Field(0, description="training memory of its network, by the site's fit")
    measured_bytes: int = Field(0, description="the same, measured in a step")
    saving: Saving = Field(Saving(), description="what it does to train that network within its memory budget")
    own_values: int = Field(0, description="parameters that no other site holds; they never travel")


class SearchResult(Part):
    """An architecture search, from the supernet to the training of what was found."""

    space: str
    supernet_parameters: int = 0
    supernet_bytes: int = Field(0, description="size of the supernet on the wire")
    supernet_rounds: list[Round] = Field(default_factory=list)
    generations: list[Generation] = Field(default_factory=list)
    consensus: str | None = Field(None, description="the network that every site can hold, as JSON")
    sites: dict[str, SearchSite] = Field(default_factory=dict)
    rounds: list[Round] = Field(default_factory=list, description="training of the networks that were found")
    seconds: float = Field(0.0, description="until the networks were found")


class KeptModel(Part):
    """One model that a site could keep."""

    validation_dice: float | None
    scores: SiteScores
    parameters: int
    memory_bytes: int
    steps: int


class PersonalSite(Part):
    """The models that a site could keep, and the one that it keeps."""

    chosen: str
    models: dict[str, KeptModel]


class Personal(Part):
    """What the sites take home."""

    sites: dict[str, PersonalSite] = Field(default_factory=dict)
    mean_dice: float | None = Field(None, description="test Dice of the chosen models, every site counting the same")
    worst_dice: float | None = Field(None, description="the same, of the worst site")
    left_out: dict[str, str] = Field(default_factory=dict)


class Restart(Part):
    """The server was ended in mid-job and went on from a checkpoint."""

    after_round: int = Field(description="the last round that the checkpoint held")
    damaged: list[str] = Field(default_factory=list, description="newer checkpoints that could not be used, and why")
    lost_state: list[str] = Field(
        default_factory=list, description="sites whose own state (optimiser, local layers) could not be restored"
    )


class Return(Part):
    """A site that was started anew in mid-job, or came late."""

    site: str
    round: int = Field(description="in which it took part again; the last one: in that or what follows it")
    restored: bool | None = Field(description="whether its own state could be restored; none: there was nothing to")


class Result(Part):
    """The whole run."""

    schema_version: int = SCHEMA_VERSION
    status: Literal["running", "finished", "failed", "interrupted"] = "running"
    error: str | None = None
    caveats: list[str] = Field(default_factory=list, description="why a finished run is not to be trusted as it is")
    name: str
    seed: int
    rounds_asked: int
    started: str = Field(description="UTC, ISO 8601")
    seconds: float = 0.0
    versions: dict[str, str]
    config: dict[str, Any]
    parameters: int = Field(0, description="values in the network")
    exchanged_bytes: int = Field(0, description="bytes of one whole model, float32")
    sites: dict[str, Site] = Field(default_factory=dict)
    refused: dict[str, str] = Field(default_factory=dict, description="site: why it takes no part")
    initial_dice: float | None = Field(None, description="mean validation Dice of the untrained network")
    initial_metrics: dict[str, float | None] = Field(default_factory=dict, description="all its validation metrics")
    rounds: list[Round] = Field(default_factory=list)
    restarts: list[Restart] = Field(default_factory=list)
    returns: list[Return] = Field(default_factory=list)
    search: SearchResult | None = None
    final: Final | None = None
    personal: Personal | None = None
    baselines: dict[str, Baseline] = Field(default_factory=dict)


def write_result(path: Path, result: Result) -> None:
    """Write ``result.json``; a reader at any instant sees the old one or the new one."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(result.model_dump(mode="json"), indent=2, allow_nan=False) + "\n")


def read_result(path: Path) -> Result:
    """Read ``result.json``.

    Raises:
        DataError: it is missing or not one.
    """
    try:
        return Result.model_validate_json(path.read_text())
    except FileNotFoundError:
        raise DataError(f"{path}: there is no such result") from None
    except (OSError, UnicodeDecodeError, ValidationError) as error:
        raise DataError(f"{path}: not a result of fedspleen: {str(error).splitlines()[0]}") from None


def software_versions() -> dict[str, str]:
    """Versions of what decides the numbers."""
    return dict(_versions())


@cache
def _versions() -> tuple[tuple[str, str], ...]:
    packages = ("nvflare", "monai", "torch", "numpy")
    own = {"fedspleen": metadata.version("fedspleen"), "python": platform.python_version()}
    return tuple((own | {package: metadata.version(package) for package in packages}).items())


def site_scores(report: TestReport) -> SiteScores:
    """A site's test report as it stands in the result; several organs are averaged by their cases."""
    organs = report.dice
    return SiteScores(
        cases=max((spread.cases for spread in organs.values()), default=0),
        dice=weighted_mean((spread.mean, spread.cases) for spread in organs.values()),
        dice_std=weighted_mean((spread.std, spread.cases) for spread in organs.values()),
        surface_dice=weighted_mean((spread.mean, spread.cases) for spread in report.surface_dice.values()),
        organs={
            organ: {
                "dice": spread.mean,
                "dice_std": spread.std,
                "surface_dice": report.surface_dice[organ].mean,
            }
            for organ, spread in organs.items()
        },
    )


def weighted_mean(values: Iterable[tuple[float | None, int]]) -> float | None:
    """Weighted mean of what is known."""
    known = [(value, weight) for value, weight in values if value is not None and weight > 0]
    if not known:
        return None
    return math.fsum(value * weight for value, weight in known) / sum(weight for _, weight in known)
