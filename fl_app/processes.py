"""Start a program with all that it starts in turn, and leave none of it behind. Linux.

FLARE's simulator starts several processes, each in a session of its own, so that a signal to one does not reach
the others. Orphans are therefore adopted by the process that is to end them, and a child whose starter dies
notices that its standard input has closed.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import IO

import psutil

_SET_CHILD_SUBREAPER = 36  # prctl's number


def adopt_orphans() -> None:
    """Become the parent of all descendants whose own parent ends."""
    ctypes.CDLL(None, use_errno=True).prctl(_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def end_descendants() -> None:
    """End all descendants of this process at once. What matters on disk is written by renaming, so nothing is torn."""
    while sum(_kill(child) for child in psutil.Process().children(recursive=True)):
        time.sleep(0.05)  # until none is left that could have started another in the meantime


def end_with_parent() -> None:
    """End this process and all its descendants as soon as whoever started it is gone."""
    adopt_orphans()

    def wait_for_parent() -> None:
        # returns when the parent, which holds the other end, is gone; sys.stdin's own lock would stop forked children
        while os.read(sys.stdin.fileno(), 1):
            pass
        end_descendants()
        os._exit(1)

    threading.Thread(target=wait_for_parent, daemon=True).start()


@contextmanager
def running(
    command: Sequence[str], log: Path | IO[bytes], environment: Mapping[str, str]
) -> Iterator[subprocess.Popen[bytes]]:
    """A process whose whole family ends with the block, however the block is left.

    Args:
        command: the program, which calls `end_with_parent`, and its arguments.
        log: what takes its output: a file that is appended to, or an open stream.
        environment: variables that it gets beside this process's own.
    """
    adopt_orphans()
    with _opened(log) as stream:
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=stream,
            stderr=subprocess.STDOUT,
            env={**os.environ, **environment},
            start_new_session=True,  # Ctrl-C in a terminal reaches us alone, and we end the others
        )
    try:
        yield process
    finally:
        end_descendants()
        process.wait()
        _reap()
        if process.stdin:
            process.stdin.close()


class Interrupted(BaseException):
    """The user, or the system, wants this process to end.

    Attributes:
        exit_code: 128 plus the signal's number, as shells have it.
    """

    def __init__(self, signal_number: int) -> None:
        super().__init__(signal.Signals(signal_number).name)
        self.exit_code = 128 + signal_number


def raise_on_signals() -> None:
    """Turn SIGINT, SIGTERM and SIGHUP into `Interrupted`, once: a second one does not disturb the tidying-up."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(each, signal.SIG_IGN)
        raise Interrupted(number)

    for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(each, interrupt)


@contextmanager
def _opened(log: Path | IO[bytes]) -> Iterator[IO[bytes]]:
    if not isinstance(log, Path):
        yield log
        return
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as stream:
        yield stream


def _kill(process: psutil.Process) -> bool:
    """Whether the process was still alive."""
    try:
        if process.status() == psutil.STATUS_ZOMBIE:
            return False
        process.kill()
    except psutil.NoSuchProcess:
        return False
    return True


def _reap() -> None:
    """Take leave of adopted processes that have ended; `subprocess` takes leave of its own."""
    for child in psutil.Process().children():
        try:
            child.wait(timeout=0)
        except psutil.TimeoutExpired:
            continue
