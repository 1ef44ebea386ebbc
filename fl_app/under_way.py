"""What the sites are doing just now: `under_way.json` beside the growing result, which is gone when the job has ended.

A file of its own: a result is written after each event, and signs of life come every few seconds from every site.
"""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fl_app.files import replacing

UNDER_WAY = "under_way.json"


class UnderWay(BaseModel):
    """The task under way.

    Attributes:
        task: one of `fl_app.messages.TASKS`; empty: none.
        network: which network it is about.
        steps: optimiser steps in this task of each site that has not answered yet and has given a sign of life.
    """

    model_config = ConfigDict(extra="forbid")

    task: str = ""
    network: str = ""
    steps: dict[str, int] = Field(default_factory=dict)


def write_under_way(path: Path, told: UnderWay) -> None:
    """A reader at any instant sees the old file or the new one."""
    with replacing(path) as temporary:
        temporary.write_text(told.model_dump_json())


def read_under_way(path: Path) -> UnderWay:
    """What the file says; nothing is under way where there is none."""
    try:
        return parse_under_way(path.read_text())
    except OSError:
        return UnderWay()


def parse_under_way(text: str) -> UnderWay:
    """What a text says; nothing is under way if it is none of ours."""
    try:
        return UnderWay.model_validate_json(text)
    except ValidationError:
        return UnderWay()
