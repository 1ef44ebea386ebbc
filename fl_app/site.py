"""What a site decides for itself; it never leaves the site."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import yaml
from pydantic import Field

from fl_app.config import Settings
from fl_app.config.base import Positive
from fl_app.config_file import FileKind, load_settings
from fl_app.errors import ConfigError

SITE_FILE_VARIABLE = "FEDSPLEEN_SITE_FILE"


class SiteLimits(Settings):
    """What a job may ask of a site at most; a job that asks for more is refused by the site, before it trains."""

    min_training_cases: Positive | None = Field(
        None,
        description="fewest training cases of its own with which the site takes part: a model that was trained on a "
        "single patient may tell of that patient",
    )
    max_rounds: Positive | None = Field(None, description="most rounds in a job")
    max_steps_per_round: Positive | None = Field(None, description="most optimiser steps in a round")
    max_voxels_per_step: Positive | None = Field(
        None, description="most voxels in an optimiser step: the patch's three sides times the batch size"
    )
    networks: tuple[str, ...] | None = Field(None, description="names of the networks that may be trained; none: any")
    share_normalisation: bool = Field(
        True,
        description="whether normalisation layers, which hold means and spreads of the site's features, may leave; "
        "false: a job needs federation.normalisation: local",
    )


class SiteSettings(Settings):
    """A site's own ``site.yaml``."""

    data: Path = Field(description="folder with this site's images and labels; may be read-only")
    cases: tuple[str, ...] | None = Field(None, description="names of the cases to use; none: all")
    device: str = Field("auto", description="auto, cpu, cuda or cuda:N")
    processes: Positive = Field(
        1,
        description="processes that take each training step together, with a share of the batch each: one for each "
        "GPU, from the one that device names on; without a GPU they divide the threads. A job uses at most as many as "
        "its training.batch_size",
    )
    threads: int | None = Field(None, ge=1, description="processor threads for training; none: all")
    memory_budget_gib: Annotated[float, Field(gt=0)] | None = Field(
        None,
        description="memory of the device that training may use, in GiB (2^30 bytes): the site trains a network that "
        "takes more in a way that takes less (see training.recompute, training.least_patch_share), and a search keeps "
        "to it; none: what is free",
    )
    window_budget_s: Annotated[float, Field(gt=0)] | None = Field(
        None,
        description="longest time in seconds that predicting one window of data.patch_voxels may take on the device: "
        "in a search the site takes no network that is slower. By the clock, so that two runs may differ; none: any",
    )
    cache: Path | None = Field(
        None, description="folder for prepared cases; none: cache/ in the kit's folder, in a simulation prepared anew"
    )
    output: Path | None = Field(
        None,
        description="folder for what stays at the site: a folder for each job, with the Dice of each test case in "
        "test_cases.csv; none: output/ in the kit's folder",
    )
    state: Path | None = Field(
        None, description="folder for what a restart in mid-job needs; none: state/ in the kit's folder"
    )
    limits: SiteLimits = Field(default_factory=SiteLimits, description="what a job may ask of this site at most")


def load_site(site: str, job: str = "") -> SiteSettings:
    """Settings of the site whose client runs in this process.

    The environment variable ``FEDSPLEEN_SITE_FILE`` names the file; ``{site}`` in it stands for the site's name.

    Args:
        site: the site's name.
        job: the job's identifier, which takes the place of ``{job}`` in ``output`` and ``state``.

    Raises:
        ConfigError: the variable is not set, or the file is missing or wrong.
    """
    template = os.environ.get(SITE_FILE_VARIABLE)
    if not template:
        raise ConfigError(f"{SITE_FILE_VARIABLE}: not set - it names the site's site.yaml")
    settings = read_site(Path(template.replace("{site}", site)))
    folders = {"output": settings.output, "state": settings.state}
    return settings.model_copy(
        update={name: Path(str(path).replace("{job}", job)) for name, path in folders.items() if path}
    )


def read_site(path: Path) -> SiteSettings:
    """Settings in a ``site.yaml``.

    Raises:
        ConfigError: one line for each mistake: ``file:line key: value - what is allowed (did you mean ...?)``.
    """
    return load_settings(path, _FILE)


def write_site(path: Path, settings: SiteSettings) -> None:
    """Write a ``site.yaml``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(settings.model_dump(mode="json", exclude_none=True), sort_keys=False))


_FILE = FileKind(SiteSettings, "site", "keys such as 'data:' and 'device:'")
