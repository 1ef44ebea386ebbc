"""One process a kit, how it is stopped, and what it prints; FLARE is not started."""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager

import pytest

from fl_app.deployment import console
from fl_app.deployment.lock import LOCK_FILE, sole_runner, stop
from fl_app.errors import FederationError, UsageError
from fl_app.processes import running
from tests.federation import fedspleen

HOLD = """\
import sys, time, signal
from pathlib import Path
from fl_app.deployment.lock import sole_runner
if sys.argv[2] == "deaf":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
with sole_runner(Path(sys.argv[1]), "site", "site-1"):
    print("held", flush=True)
    time.sleep(60)
"""


@contextmanager
def holding(folder, manner="obedient"):
    """A process that runs as site-1 with the kit in a folder."""
    command = [sys.executable, "-c", HOLD, str(folder), manner]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout.readline() == "held\n"
            yield process
        finally:
            process.kill()


def test_a_second_start_is_refused_in_one_sentence(tmp_path):
    with (
        holding(tmp_path) as process,
        pytest.raises(FederationError, match=rf"site-1 is running already \(process {process.pid}\) - .*client stop"),
        sole_runner(tmp_path, "site", "site-1"),
    ):
        pass


def test_stop_ends_what_runs_and_then_there_is_nothing_to_stop(tmp_path):
    with holding(tmp_path) as process:
        name, seconds = stop(tmp_path, "site", 10)
        assert name == "site-1" and seconds < 10 and process.wait(5) == -signal.SIGTERM
    with pytest.raises(FederationError, match=r"nothing is running with this kit$"):
        stop(tmp_path, "site", 10)
    with sole_runner(tmp_path, "site", "site-1"):
        pass


def test_what_a_killed_process_leaves_is_no_obstacle(tmp_path):
    with holding(tmp_path) as process:
        process.kill()
        process.wait(5)
    assert json.loads((tmp_path / LOCK_FILE).read_text())["process"] == process.pid
    with pytest.raises(FederationError, match="nothing is running"):
        stop(tmp_path, "site", 1)
    with sole_runner(tmp_path, "site", "site-1"):
        assert json.loads((tmp_path / LOCK_FILE).read_text())["process"] == os.getpid()


def test_who_does_not_end_in_time_is_named(tmp_path):
    with holding(tmp_path, "deaf") as process:
        with pytest.raises(FederationError, match=f"not ended within 0 s .* `kill -9 {process.pid}`"):
            stop(tmp_path, "site", 0.2)
        assert process.poll() is None


def test_a_number_that_another_process_got_is_not_ended(tmp_path):
    with holding(tmp_path) as process:
        holder = json.loads((tmp_path / LOCK_FILE).read_text())
        for changes in ({"started": "1"}, {"process": 2**22 + 1}):
            (tmp_path / LOCK_FILE).write_text(json.dumps({**holder, **changes}))
            with pytest.raises(FederationError, match="another container, or on another machine"):
                stop(tmp_path, "site", 1)
        time.sleep(0.1)
        assert process.poll() is None


def test_the_wrong_folder_or_command_is_told(tmp_path):
    with pytest.raises(UsageError, match="there is no such folder"):
        stop(tmp_path / "nowhere", "server", 1)
    with pytest.raises(FederationError, match="started with --workspace"):
        stop(tmp_path, "server", 1)
    with holding(tmp_path) as process:
        with pytest.raises(UsageError, match="a site runs there, site-1 - use `fedspleen client stop`"):
            stop(tmp_path, "server", 1)
        assert process.poll() is None
    for done in (fedspleen("client", "stop", tmp_path), fedspleen("server", "stop", tmp_path)):
        assert done.returncode == 1 and len(done.stderr.splitlines()) == 1 and "nothing is running" in done.stderr


def test_a_folder_that_cannot_be_written_is_one_sentence(tmp_path):
    (tmp_path / LOCK_FILE).mkdir()
    with pytest.raises(FederationError, match="cannot be written"), sole_runner(tmp_path, "server", "server"):
        pass


def test_the_console_log_begins_anew_and_is_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(console, "_FILE_BYTES", 1000)
    code = "import sys\nfor number in range(int(sys.argv[1])): print('line', number, flush=True)"
    for count in (3, 1000, 4):
        command = [sys.executable, "-c", f"from fl_app.processes import *; end_with_parent()\n{code}", str(count)]
        log = tmp_path / "console.log"
        with console.console_log(log) as output, running(command, output, {}) as process:
            assert process.wait(10) == 0
        assert log.read_text().splitlines()[-1] == f"line {count - 1}"
    assert log.read_text() == "line 0\nline 1\nline 2\nline 3\n"
    assert (tmp_path / "console.log.1").read_text().endswith("line 999\n")
    files = list(tmp_path.iterdir())
    assert len(files) == 5 and all(path.stat().st_size <= 1000 for path in files)
