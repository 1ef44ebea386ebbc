"""The set-up that simulate.sh and tests/run.sh share."""

import os
import shutil
import subprocess
from pathlib import Path

PROJECT = Path(__file__).parents[1]


def test_an_interpreter_that_will_not_do_is_told_in_one_sentence(tmp_path):
    shutil.copytree(PROJECT / "scripts", tmp_path / "scripts")
    for name in ("simulate.sh", "requirements.lock", "pyproject.toml"):
        shutil.copy(PROJECT / name, tmp_path / name)
    done = subprocess.run(
        [tmp_path / "simulate.sh"],
        env={**os.environ, "PYTHON": "/bin/false"},
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("fedspleen needs Python 3.10 or later, and /bin/false is not")
    assert not (tmp_path / ".venv").exists()


def test_both_scripts_set_up_by_the_same_piece_of_code():
    for script in ("simulate.sh", "tests/run.sh"):
        text = (PROJECT / script).read_text()
        assert "scripts/setup.sh" in text and "fedspleen_setup" in text and "pip install" not in text
    assert "tests/run.sh" in (PROJECT / ".ci" / "run").read_text()


def test_the_lock_pins_every_package_and_names_no_place():
    for line in (PROJECT / "requirements.lock").read_text().splitlines():
        if not line.startswith("#"):
            assert "==" in line.split(";")[0], line
            assert "://" not in line and "@" not in line, line
