"""The commands of the lead's and the hospital's tutorials, run as they are typed.

The researcher's train for minutes; that its commands exist is checked in `test_docs`.
"""

import os
import re
import subprocess
import sys

from fl_app.config_file import load_job
from fl_app.site import read_site
from tests.test_house import ROOT

TUTORIALS = ROOT / "docs" / "tutorials"


def run_tutorial(name, folder):
    """Run the blocks that are marked `sh` one after the other in one shell, in an empty folder beside the examples."""
    blocks = re.findall(r"^```sh\n(.*?)^```$", (TUTORIALS / name).read_text(), flags=re.DOTALL | re.MULTILINE)
    assert blocks
    programs = folder / "programs"
    programs.mkdir()
    for program, words in (("fedspleen", "-m fl_app "), ("python", "")):
        (programs / program).write_text(f'#!/bin/sh\nexec {sys.executable} {words}"$@"\n')
        (programs / program).chmod(0o755)
    (folder / "provisioning").symlink_to(ROOT / "provisioning")
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", "\n".join(blocks)],
        cwd=folder,
        env={**os.environ, "PATH": f"{programs}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_leads_tutorial_makes_kits_and_a_job(tmp_path):
    printed = run_tutorial("lead.md", tmp_path)
    assert {path.name for path in (tmp_path / "spleen-2026").glob("hospital-*.kit.zip")} == {
        f"hospital-{name}.kit.zip" for name in "abc"
    }
    assert "fingerprint" in printed and load_job(tmp_path / "job.yaml").federation.min_sites == 2


def test_the_hospitals_tutorial_writes_settings_that_are_right(tmp_path):
    run_tutorial("hospital.md", tmp_path)
    assert read_site(tmp_path / "kit" / "site.yaml").threads == 8
