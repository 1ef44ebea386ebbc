"""A model as one safetensors file: weights, and as metadata all that is needed to use them. Loading runs no code."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from fl_app.config import Job
from fl_app.config_file import parse_job
from fl_app.errors import ConfigError, DataError
from fl_app.files import write_durably

_KEY = "fedspleen"
# how the model was trained, which nobody who uses it needs to know
_HISTORY = ("training", "federation", "personal")


@dataclass(frozen=True)
class ModelInfo:
    """What a model file says of itself.

    Attributes:
        job: the job that trained it: network, labels, preprocessing.
        round: after which round; 0 is the untrained network.
        metric: name and value by which it was chosen, or none.
        versions: of the software that wrote it.
        architectures: networks of the job's search space, as JSON, whose values the file holds; the first one is
            the model. Empty: the model is the job's own network.
    """

    job: Job
    round: int
    metric: tuple[str, float] | None
    versions: Mapping[str, str]
    architectures: tuple[str, ...] = ()

    @property
    def score(self) -> float | None:
        """The value of the metric by which it was chosen; none: it was chosen by none."""
        return self.metric[1] if self.metric else None

    @property
    def network(self) -> str:
        """What kind of network it is."""
        return "found by architecture search" if self.architectures else self.job.network.name


def save_model(path: Path, weights: Mapping[str, torch.Tensor], info: ModelInfo) -> None:
    """Write a model; a kill at any instant leaves the old file or the new one."""
    described = {
        "job": info.job.model_dump(mode="json"),
        "labels": {"background": 0} | {organ: number for number, organ in enumerate(info.job.data.labels, start=1)},
        "round": info.round,
        "metric": info.metric,
        "versions": dict(info.versions),
        "architectures": list(info.architectures),
    }
    contiguous = {name: value.contiguous() for name, value in weights.items()}
    write_durably(path, save(contiguous, {_KEY: json.dumps(described)}))


def load_model(path: Path) -> tuple[dict[str, torch.Tensor], ModelInfo]:
    """Weights by name, and what the file says of itself.

    Settings of the training that this version does not know are left out, as those of an older version; all that
    decides what the model computes must be known.

    Raises:
        DataError: the file is missing, damaged, or not a model of fedspleen.
    """
    try:
        with safe_open(path, framework="pt") as stream:
            described = json.loads((stream.metadata() or {})[_KEY])
            weights = {name: stream.get_tensor(name) for name in stream.keys()}  # noqa: SIM118 - not a mapping
        metric = described["metric"]
        info = ModelInfo(
            job=parse_job(json.dumps(_known(described["job"])), str(path)),
            round=int(described["round"]),
            metric=(str(metric[0]), float(metric[1])) if metric else None,
            versions=described["versions"],
            architectures=tuple(map(str, described.get("architectures", ()))),
        )
    except FileNotFoundError:
        raise DataError(f"{path}: there is no such model file") from None
    except (
        KeyError,
        TypeError,
        AttributeError,
        ValueError,
        IndexError,
        RecursionError,
        OSError,
        SafetensorError,
        ConfigError,
    ) as error:
        # the file may have come from anybody: what it holds must not reach a terminal as it is
        problem = "; ".join(line if line.isprintable() else ascii(line) for line in str(error).splitlines())
        raise DataError(f"{path}: not a model that fedspleen wrote, or damaged: {problem[:500]}") from None
    return weights, info


def _known(job: Mapping[str, Any]) -> dict[str, Any]:
    """A job without those settings of its training that this version does not know."""
    known = dict(job)
    for section in _HISTORY:
        fields = type(getattr(Job(), section)).model_fields
        known[section] = {key: value for key, value in known.get(section, {}).items() if key in fields}
    return known
