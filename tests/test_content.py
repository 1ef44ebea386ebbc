"""A file's content is read once, and again as soon as anything about the file has changed."""

import hashlib
import os
import shutil
import time

import pytest

from fl_app.data.content import content_digest


def old(path, content):
    """A file whose times lie minutes back: its status is changed last by setting its times, so the clock must go on."""
    path.write_bytes(content)
    os.utime(path, (time.time() - 300,) * 2)
    return path


@pytest.fixture
def later(monkeypatch):
    """All files have settled."""
    now = time.time
    monkeypatch.setattr(time, "time", lambda: now() + 60)


def sha(content):
    return hashlib.sha256(content).hexdigest()


@pytest.mark.usefixtures("later")
def test_a_file_that_nobody_touched_is_not_read_again(tmp_path):
    path, cache = old(tmp_path / "a.nii.gz", b"first"), tmp_path / "cache"
    assert content_digest(path, cache) == sha(b"first")
    (known,) = cache.iterdir()
    known.write_text("remembered")
    assert content_digest(path, cache) == "remembered"
    assert "a.nii" not in known.name


@pytest.mark.usefixtures("later")
@pytest.mark.parametrize("way", ["in place", "replaced", "replaced with the same time"])
def test_other_content_of_the_same_size_is_seen(tmp_path, way):
    path, cache = old(tmp_path / "a.nii", b"first"), tmp_path / "cache"
    content_digest(path, cache)
    times = path.stat().st_mtime_ns
    if way == "in place":
        path.write_bytes(b"other")
    else:
        shutil.move(old(tmp_path / "b.nii", b"other"), path)
    os.utime(path, ns=(times, times))  # even if the time of writing is set back
    assert content_digest(path, cache) == sha(b"other")


def test_a_file_that_was_just_written_is_not_trusted(tmp_path):
    path, cache = tmp_path / "a.nii", tmp_path / "cache"
    path.write_bytes(b"first")
    assert content_digest(path, cache) == sha(b"first")
    assert not cache.exists() or not list(cache.iterdir())
