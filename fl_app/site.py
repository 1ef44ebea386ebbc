"""What a site decides for itself; it never leaves the site."""

from __future__ import annotations

import os
from pathlib import Path

import yaml
from pydantic import Field

from fl_app.config import Settings
from fl_app.config_file import FileKind, load_settings
from fl_app.errors import ConfigError

SITE_FILE_VARIABLE = "FEDSPLEEN_SITE_FILE"


class SiteSettings(Settings):
    """A site's own ``site.yaml``."""

    data: Path = Field(description="folder with this site's images and labels")
    cases: tuple[str, ...] | None = Field(None, description="names of the cases to use; none: all")
    device: str = Field("auto", description="auto, cpu, cuda or cuda:N")
    threads: int | None = Field(None, ge=1, description="processor threads for training; none: all")
    cache: Path | None = Field(None, description="folder for prepared cases; none: prepare anew each time")
    output: Path | None = Field(None, description="folder for what stays at the site: per-case test scores")


def load_site(site: str) -> SiteSettings:
    """Settings of the site whose client runs in this process.

    The environment variable ``FEDSPLEEN_SITE_FILE`` names the file; ``{site}`` in it stands for the site's name.

    Raises:
        ConfigError: the variable is not set, or the file is missing or wrong.
    """
    template = os.environ.get(SITE_FILE_VARIABLE)
    if not template:
        raise ConfigError(f"{SITE_FILE_VARIABLE}: not set - it names the site's site.yaml")
    return read_site(Path(template.replace("{site}", site)))


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
