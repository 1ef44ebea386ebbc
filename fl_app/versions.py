"""Which versions of fedspleen understand each other."""

from __future__ import annotations

from importlib import metadata


def own_version() -> str:
    """The installed version of fedspleen."""
    return metadata.version("fedspleen")


def incompatibility(theirs: str, ours: str | None = None) -> str | None:
    """Why two versions cannot work together, naming both; none if they can: major and minor number must agree."""
    ours = ours or own_version()
    if theirs.split(".")[:2] == ours.split(".")[:2]:
        return None
    wanted = ".".join(ours.split(".")[:2])
    return f"it runs fedspleen {theirs or 'of an unknown version'}, the server {ours} - install {wanted} at the site"
