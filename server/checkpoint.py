"""What a job's server needs to go on after it was killed: written after every round, checked when it is read."""

from __future__ import annotations

import hashlib
import json
import logging
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from fl_app.files import write_durably

_logger = logging.getLogger(__name__)
_KEPT = 2
_NAME = re.compile(r"(\d{8})-([0-9a-f]{64})\.safetensors")


class Checkpoints:
    """A folder with the last two checkpoints. A file's name holds the SHA-256 of its content.

    Args:
        folder: made when the first checkpoint is written.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def save(self, values: Mapping[str, torch.Tensor], facts: Mapping[str, Any]) -> None:
        """Write a checkpoint; a kill at any instant leaves the ones before it.

        Args:
            values: tensors by name.
            facts: plain data that JSON can hold.
        """
        known = self._files()
        number = max(known, default=0) + 1
        content = save({name: value.contiguous() for name, value in values.items()}, {"facts": json.dumps(facts)})
        write_durably(self._folder / f"{number:08d}-{hashlib.sha256(content).hexdigest()}.safetensors", content)
        for old in sorted(known)[: 1 - _KEPT]:
            known[old].unlink()

    def clear(self) -> None:
        """Remove them, and what a kill has left of one: the job needs them no more."""
        if self._folder.is_dir():
            shutil.rmtree(self._folder)

    def load(self) -> tuple[dict[str, torch.Tensor], dict[str, Any], list[str]] | None:
        """The newest whole checkpoint, and a sentence for each newer one that is damaged; none without any."""
        files = self._files()
        damaged: list[str] = []
        for number in sorted(files, reverse=True):
            content = files[number].read_bytes()
            match = _NAME.fullmatch(files[number].name)
            if match and hashlib.sha256(content).hexdigest() == match[2]:
                try:
                    return load(content), _facts(content), damaged
                except (SafetensorError, KeyError, ValueError):
                    _logger.warning(f"{files[number]}: whole, but not a checkpoint", exc_info=True)
            damaged.append(f"checkpoint {number} was damaged; the one before it was used")
        return None

    def _files(self) -> dict[int, Path]:
        found = self._folder.iterdir() if self._folder.is_dir() else []
        return {int(match[1]): path for path in found if (match := _NAME.fullmatch(path.name))}


def _facts(content: bytes) -> dict[str, Any]:
    """The facts in a safetensors file's header: 8 bytes of its length, then JSON."""
    length = int.from_bytes(content[:8], "little")
    facts: dict[str, Any] = json.loads(json.loads(content[8 : 8 + length])["__metadata__"]["facts"])
    return facts
