"""What a file holds, in one number, without reading it again while nobody has touched it."""

from __future__ import annotations

import hashlib
import json
import time
from pathlib import Path

from fl_app.files import replacing

_SETTLED_SECONDS = 2.0  # a file that was written later may be written again within the same tick of its clock


def content_digest(path: Path, cache: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal digits.

    It is kept in the cache under the file's place, size and times, the time of the last change of its status among
    them, which no program can set back.

    Args:
        path: the file.
        cache: folder for what was found.
    """
    before = path.stat()
    times = [before.st_mtime_ns, before.st_ctime_ns]
    facts = [str(path.absolute()), before.st_dev, before.st_ino, before.st_size, *times]
    known = cache / f"content-{hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:32]}"
    if known.exists():
        return known.read_text()
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    after = path.stat()
    if [after.st_mtime_ns, after.st_ctime_ns] == times and time.time() - max(times) / 1e9 > _SETTLED_SECONDS:
        with replacing(known) as temporary:
            temporary.write_text(digest)
    return digest
