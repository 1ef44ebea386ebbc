"""One process a kit: a lock in its folder, which tells `fedspleen server stop` and `client stop` whom to end.

The operating system frees the lock when its holder ends, however it ends: what a killed process leaves is no obstacle.
"""

from __future__ import annotations

import fcntl
import json
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from io import TextIOWrapper
from pathlib import Path

from fl_app.errors import FederationError, UsageError

LOCK_FILE = "running.lock"
_POLL_SECONDS = 0.1
_COMMANDS = {"server": "fedspleen server", "site": "fedspleen client"}


@dataclass(frozen=True)
class Holder:
    """Who runs with a kit.

    Attributes:
        kind: server or site.
        name: the participant's.
        process: its number.
        started: when the process was started, in the system's ticks since it booted; numbers are given again.
    """

    kind: str
    name: str
    process: int
    started: str


@contextmanager
def sole_runner(folder: Path, kind: str, name: str) -> Iterator[None]:
    """Hold the lock of a folder as long as the block lasts.

    Raises:
        FederationError: another process has it, or the folder cannot be written.
    """
    path = folder / LOCK_FILE
    try:
        stream = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o600), "r+")
    except OSError as error:
        raise FederationError(f"{folder}: cannot be written: {error.strerror} - logs and jobs go there") from None
    with stream:
        if not _take(stream):
            holder = _read(stream)
            command = f"`{_COMMANDS[kind]} stop {folder}`"
            number = f" (process {holder.process})" if holder else ""
            raise FederationError(f"{name} is running already{number} - {command} ends it")
        stream.truncate(0)
        json.dump(asdict(Holder(kind, name, os.getpid(), _started(os.getpid()))), stream)
        stream.flush()
        try:
            yield
        finally:
            stream.truncate(0)


def stop(folder: Path, kind: str, seconds: float) -> tuple[str, float]:
    """Ask whoever runs with a kit to end, and wait until it has; its name, and how many seconds it took.

    Args:
        folder: of the kit; of a server with a workspace of its own: that one.
        kind: server or site.
        seconds: how long to wait.

    Raises:
        UsageError: there is no such folder, or something of another kind runs there.
        FederationError: nothing runs, it cannot be ended from here, or it has not ended in time.
    """
    if not folder.is_dir():
        raise UsageError(f"{folder}: there is no such folder - name the one that it was started with")
    try:
        stream = (folder / LOCK_FILE).open()
    except FileNotFoundError:
        raise FederationError(_nothing(folder, kind)) from None
    except OSError as error:
        raise FederationError(f"{folder / LOCK_FILE}: cannot be read: {error.strerror}") from None
    with stream:
        holder = _read(stream)
        if _take(stream) or holder is None:
            raise FederationError(_nothing(folder, kind))
        if holder.kind != kind:
            raise UsageError(
                f"{folder}: a {holder.kind} runs there, {holder.name} - use `{_COMMANDS[holder.kind]} stop`"
            )
        began = time.monotonic()
        _ask(holder)
        while not _take(stream):
            if time.monotonic() - began > seconds:
                raise FederationError(
                    f"{holder.name} has not ended within {seconds:.0f} s - wait, or end it at once and with "
                    f"all its processes: `kill -9 {holder.process}`"
                )
            time.sleep(_POLL_SECONDS)
    return holder.name, time.monotonic() - began


def _ask(holder: Holder) -> None:
    who = f"{holder.name} (process {holder.process})"
    elsewhere = f"{who} runs in another container, or on another machine that shares this folder - stop it there"
    try:
        if _started(holder.process) != holder.started:
            raise FederationError(elsewhere)
        os.kill(holder.process, signal.SIGTERM)
    except (ProcessLookupError, FileNotFoundError):
        raise FederationError(elsewhere) from None
    except PermissionError:
        raise FederationError(f"{who} runs as another user - stop it as that user") from None


def _nothing(folder: Path, kind: str) -> str:
    hint = "; a server that was started with --workspace is stopped with the same one" if kind == "server" else ""
    return f"{folder}: nothing is running with this kit{hint}"


def _take(stream: TextIOWrapper) -> bool:
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _read(stream: TextIOWrapper) -> Holder | None:
    stream.seek(0)
    try:
        return Holder(**json.load(stream))
    except (ValueError, TypeError):
        return None  # it is just starting or ending


def _started(process: int) -> str:
    """The 22nd value of what the system says of a process; its name, the second one, may hold anything."""
    return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[19]
