"""What a server or a site prints, kept in files that cannot fill a disk."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import IO

CONSOLE_LOG = "console.log"
_FILE_BYTES = 5_000_000
_OLDER_FILES = 4
_LAST_WORDS_SECONDS = 2.0  # for what is still in the pipe


@contextmanager
def console_log(path: Path) -> Iterator[IO[bytes]]:
    """A pipe into a log file that begins anew; what earlier starts left is in ``console.log.1`` and so on.

    Args:
        path: the newest file; with the older ones it takes at most 25 MB.
    """
    handler = RotatingFileHandler(path, maxBytes=_FILE_BYTES, backupCount=_OLDER_FILES, encoding="utf-8")
    if path.stat().st_size:
        handler.doRollover()
    reading, writing = os.pipe()

    def copy() -> None:
        with os.fdopen(reading, encoding="utf-8", errors="replace") as lines:
            for line in lines:
                handler.emit(logging.makeLogRecord({"msg": line.rstrip("\n")}))

    thread = threading.Thread(target=copy, daemon=True)
    thread.start()
    try:
        with os.fdopen(writing, "wb") as stream:
            yield stream
    finally:
        thread.join(_LAST_WORDS_SECONDS)
        handler.close()
