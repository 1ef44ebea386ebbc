"""However a run is ended, no process stays behind, and what was reached is found."""

import signal
import time

import pytest

from fl_app.result import read_result
from tests.federation import fedspleen, processes_about, start_fedspleen, write_job, write_sites

pytestmark = pytest.mark.slow


@pytest.fixture
def arguments(tmp_path):
    data = write_sites(tmp_path / "data", site_1=4, site_2=4)
    job = write_job(tmp_path / "job.yaml", federation={"rounds": 1000})
    return "simulate", "--config", job, "--data", data, "--out", tmp_path / "out"


def _wait_for(condition, seconds, what):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"waited {seconds} s for {what}"
        time.sleep(0.1)


def _rounds_have_begun(tmp_path):
    path = tmp_path / "out" / "result.json"
    return path.exists() and len(read_result(path).rounds) >= 2


@pytest.mark.parametrize(
    ("number", "code"), [pytest.param(signal.SIGINT, 130, marks=pytest.mark.long), (signal.SIGTERM, 143)]
)
def test_a_signal_in_mid_training_leaves_the_result_so_far(arguments, tmp_path, number, code):
    process = start_fedspleen(*arguments, cwd=tmp_path)
    _wait_for(lambda: _rounds_have_begun(tmp_path), 90, "the second round")
    process.send_signal(number)
    _, errors = process.communicate(timeout=20)
    assert process.returncode == code
    assert str(tmp_path / "out") in errors and "Traceback" not in errors
    assert processes_about(tmp_path) == []
    result = read_result(tmp_path / "out" / "result.json")
    assert result.status == "interrupted" and len(result.rounds) >= 2
    assert (tmp_path / "out" / "model" / "last.safetensors").exists()


@pytest.mark.parametrize("delay", [0.2, 4.0])
def test_a_signal_while_starting_leaves_nothing_behind(arguments, tmp_path, delay):
    process = start_fedspleen(*arguments, cwd=tmp_path)
    time.sleep(delay)
    process.terminate()
    _, errors = process.communicate(timeout=20)
    assert process.returncode in (143, -signal.SIGTERM)  # the latter before Python could listen
    assert "Traceback" not in errors
    assert processes_about(tmp_path) == []


def test_kill_dash_nine_leaves_no_process_behind(arguments, tmp_path):
    process = start_fedspleen(*arguments, cwd=tmp_path)
    _wait_for(lambda: _rounds_have_begun(tmp_path), 90, "the second round")
    process.kill()
    process.communicate(timeout=20)
    _wait_for(lambda: not processes_about(tmp_path), 15, "all processes to end")


def test_damaged_files_stop_the_run_before_anything_starts(arguments, tmp_path):
    image = next((tmp_path / "data" / "site-1" / "imagesTr").iterdir())
    image.write_bytes(image.read_bytes()[:500])
    label = next((tmp_path / "data" / "site-2" / "labelsTr").iterdir())
    label.unlink()
    done = fedspleen(*arguments, cwd=tmp_path)
    assert done.returncode == 1
    assert image.name in done.stderr and label.name in done.stderr, "both sites' problems are listed at once"
    assert "remedy:" in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "out" / "result.json").exists()
