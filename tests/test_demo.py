"""`./demo.sh`: the whole story with real processes over mutual TLS, in a small size."""

import shutil
import socket
import subprocess
from pathlib import Path

import pytest
import yaml

from fl_app.result import read_result
from tests.federation import processes_about

pytestmark = pytest.mark.slow

PROJECT = Path(__file__).parents[1]
JOB = {
    "name": "demo",
    "data": {"spacing_mm": [6, 6, 8], "patch_voxels": [32, 32, 16], "validation_fraction": 0.2, "test_fraction": 0.3},
    "network": {"channels": [8, 16]},
    "training": {"steps_per_round": 5},
    "federation": {"rounds": 2},
}


@pytest.fixture
def demo(tmp_path):
    """The demo's script beside this environment, so that its own set-up finds nothing to do."""
    current = subprocess.run(["bash", "-c", ". scripts/setup.sh; fedspleen_is_set_up"], cwd=PROJECT, check=False)
    if current.returncode:
        pytest.skip("the environment is not what scripts/setup.sh would make: start tests/run.sh")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(JOB))
    options = ["--out", "out", "--port", str(port), "--sites", "2", "--cases", "5", "--config", tmp_path / "job.yaml"]
    return [PROJECT / "demo.sh", *options]


def test_the_whole_story_ends_with_a_result_and_nothing_left_running(demo, tmp_path):
    done = subprocess.run(demo, cwd=tmp_path, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    result = read_result(tmp_path / "out" / "result" / "result.json")
    assert result.status == "finished" and set(result.rounds[1].sites) == {"site-1", "site-2"}
    for words in ("fedspleen provision", "site site-2 registered", "round 2/2", "Held-out test cases"):
        assert words in done.stdout
    assert processes_about(tmp_path) == []
    keys = [path for path in (tmp_path / "out").rglob("*") if path.suffix in (".key", ".pem", ".zip")]
    assert keys == [], "private keys are taken away at the end"


def test_a_folder_that_is_there_is_left_alone(demo, tmp_path):
    (tmp_path / "out").mkdir()
    done = subprocess.run(demo, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2 and "name a new folder" in done.stderr
    assert list((tmp_path / "out").iterdir()) == []
    shutil.rmtree(tmp_path / "out")
