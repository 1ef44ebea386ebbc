"""What a site decides for itself; it never leaves the site."""

from __future__ import annotations

import os
from pathlib import Path

import yaml
from pydantic import Field, ValidationError

from fl_app.config import Settings
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
    state: Path | None = Field(
        None, description="folder for what a restart in mid-job needs; none: FLARE's folder of the job"
    )


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
        ConfigError: the file is missing or wrong.
    """
    try:
        return SiteSettings.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise ConfigError(f"{path}: there is no such site file") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path}: cannot be read: {str(error).splitlines()[0]}") from None
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors())
        raise ConfigError(f"{path}: {problems}") from None


def write_site(path: Path, settings: SiteSettings) -> None:
    """Write a ``site.yaml``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(settings.model_dump(mode="json", exclude_none=True), sort_keys=False))
