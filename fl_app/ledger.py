"""An audit trail that shows tampering: a file of JSON lines, each holding the SHA-256 of the line before it.

Each line is an object with ``number`` (from 1), ``time`` (UTC), ``event``, the event's facts, ``previous`` (the
``sha256`` of the line before, 64 zeros in the first) and ``sha256`` (of this line without it). Whoever changes, removes
or moves a line breaks the chain there. Whoever can write the file can also write a new chain, or leave out its end:
that shows when the head, which is the last line's ``sha256``, was told to somebody else and is compared.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

from fl_app.errors import UsageError

TRAIL = "audit.jsonl"  # beside a run's result, and in a site's own output folder
_START = "0" * 64
_BLOCK = 65536  # bytes read at once from the file's end
_OWN = {"number", "time", "event", "previous", "sha256"}
Fact = str | int | float | bool | None


class Ledger:
    """Appends to an audit trail. Several processes may write to one file.

    Args:
        path: the file; it and its folder are made when the first line is written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, event: str, **facts: Fact) -> str:
        """Append a line; when this returns, it is on the disk.

        A line that an earlier process was writing when it was killed is taken away, and that is written down.

        Args:
            event: what happened, such as ``received``.
            **facts: what of it. Nothing that could identify a patient: no case, no file, no path.

        Returns:
            The new head.

        Raises:
            OSError: the disk is full or the file cannot be written; the file holds what it held before.
        """
        if _OWN & facts.keys():
            raise ValueError(f"a fact cannot be called {', '.join(sorted(_OWN & facts.keys()))}")
        self.path.parent.mkdir(parents=True, exist_ok=True)
        new = not self.path.exists()
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            whole, number, head = _end(descriptor)
            content = b""
            torn = os.fstat(descriptor).st_size - whole
            if torn:
                number += 1
                content, head = _line(number, "torn", {"bytes": torn}, head)
            line, head = _line(number + 1, event, facts, head)
            _replace_end(descriptor, whole, content + line)
        finally:
            os.close(descriptor)  # and the lock with it
        if new:
            _sync_folder(self.path.parent)
        return head


@dataclass(frozen=True)
class LedgerReport:
    """What was found in an audit trail.

    Attributes:
        lines: how many whole lines it has, up to the first that is wrong.
        head: SHA-256 of the last of these.
        first: time of the first line, or none.
        last: time of the last of these lines, or none.
        problem: what is wrong with the first line that is wrong; empty: it is intact.
        torn: bytes of a line at the end that was never finished.
    """

    lines: int
    head: str
    first: str | None = None
    last: str | None = None
    problem: str = ""
    torn: int = 0


def verify_ledger(path: Path, head: str | None = None) -> LedgerReport:
    """Look for the first line that was changed, removed or moved.

    Args:
        path: the file.
        head: the SHA-256 that the last line must have, or some earlier line, if lines may have been added since;
            none: a missing end does not show.

    Raises:
        UsageError: the file cannot be read, or the head is none.
    """
    wanted = head.strip().lower() if head is not None else None
    if wanted is not None and not (len(wanted) == 64 and set(wanted) <= set("0123456789abcdef")):
        raise UsageError(f"--head takes 64 digits 0-9 and a-f, not {head!r:.80}")
    lines, previous, seen = 0, _START, False
    first: str | None = None
    last: str | None = None
    try:
        with path.open("rb") as stream:
            for number, line in enumerate(stream, start=1):
                if not line.endswith(b"\n"):
                    # a kill leaves a part of a line; this one is a part, whatever it says
                    return LedgerReport(lines, previous, first, last, _missing(wanted, seen), len(line))
                entry = _parse(line)
                problem = _problem(entry, number, previous)
                if entry is None or problem:
                    return LedgerReport(lines, previous, first, last, problem)
                lines, previous = number, str(entry["sha256"])
                last = str(entry["time"])
                first = first or last
                seen = seen or previous == wanted
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror}") from None
    return LedgerReport(lines, previous, first, last, _missing(wanted, seen))


def digest(values: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 of tensors: their names, types, shapes and values, the same in any order and memory layout."""
    total = hashlib.sha256()
    for name in sorted(values):
        value = values[name].detach().cpu().contiguous()
        total.update(json.dumps([name, str(value.dtype), list(value.shape)]).encode() + b"\n")
        if value.numel():
            total.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()


def traces(values: Mapping[str, torch.Tensor]) -> dict[str, Fact]:
    """What a trail tells of tensors: how many, their bytes, and their digest; nothing if there are none."""
    if not values:
        return {}
    size = sum(value.numel() * value.element_size() for value in values.values())
    return {"values": len(values), "bytes": size, "sha256_of_values": digest(values)}


def _line(number: int, event: str, facts: Mapping[str, Fact], previous: str) -> tuple[bytes, str]:
    entry: dict[str, Any] = {
        "number": number,
        "time": datetime.now(timezone.utc).isoformat(timespec="milliseconds"),
        "event": event,
        **facts,
        "previous": previous,
    }
    own = _hash(entry)
    return json.dumps(entry | {"sha256": own}, allow_nan=False).encode() + b"\n", own


def _hash(entry: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(entry, sort_keys=True, allow_nan=False).encode()).hexdigest()


def _parse(line: bytes) -> dict[str, Any] | None:
    """The entry in a line, if the line is to the byte what was written."""
    try:
        entry = json.loads(line)
        whole = isinstance(entry, dict) and entry.keys() >= _OWN
        return entry if whole and json.dumps(entry, allow_nan=False).encode() == line[:-1] else None
    except (ValueError, RecursionError):
        return None


def _problem(entry: dict[str, Any] | None, number: int, previous: str) -> str:
    """What is wrong with a line, given how many there are before it; empty if nothing is."""
    if entry is None or _hash({name: fact for name, fact in entry.items() if name != "sha256"}) != entry["sha256"]:
        return f"line {number} was changed"
    found = entry["number"]
    if found == number and entry["previous"] != previous:
        return f"line {number} does not follow from the line before it: one of the two was replaced"
    if not isinstance(found, int) or found < number:
        return f"line {number} is out of its place: it was written as line {found}"
    if found > number:
        return f"line {number} is missing or out of its place: line {found} stands there"
    return ""


def _missing(wanted: str | None, seen: bool) -> str:
    if wanted is None or seen:
        return ""
    return "no line has the head that was given: lines are missing at the end, or all were written anew"


def _end(descriptor: int) -> tuple[int, int, str]:
    """Where the last whole line ends, in bytes, its number, and its hash."""
    size = os.fstat(descriptor).st_size
    tail, start = b"", size
    while start and tail[: tail.rfind(b"\n")].count(b"\n") < 1:
        step = min(start, _BLOCK)
        start -= step
        tail = os.pread(descriptor, step, start) + tail
    whole = tail.rfind(b"\n") + 1
    if not whole:
        return 0, 0, _START
    last = _parse(tail[tail.rfind(b"\n", 0, whole - 1) + 1 : whole])
    if last is None or not isinstance(last["number"], int):
        # what was done to the file stays visible; the trail goes on behind it
        return start + whole, 0, _START
    return start + whole, last["number"], str(last["sha256"])


def _replace_end(descriptor: int, start: int, content: bytes) -> None:
    os.ftruncate(descriptor, start)
    try:
        written = 0
        while written < len(content):
            written += os.pwrite(descriptor, content[written:], start + written)
        os.fsync(descriptor)
    except OSError:
        os.ftruncate(descriptor, start)
        raise


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
