"""The commands of the three tutorials, run as they are typed.

The researcher's train for minutes: they run on smaller cases, patches and rounds here, and are the same otherwise.
"""

import os
import re
import subprocess
import sys

import pytest

from fl_app.config_file import load_job
from fl_app.data.phantom import make_cohort
from fl_app.result import read_result
from fl_app.site import read_site
from tests.federation import fedspleen, write_job
from tests.test_house import ROOT

TUTORIALS = ROOT / "docs" / "tutorials"


# what makes the researcher's own job small
SMALLER = {
    "spacing_mm: [2.5, 2.5, 4.0]": "spacing_mm: [8, 8, 10]",
    "patch_voxels: [96, 96, 48]": "patch_voxels: [32, 32, 16]",
    "steps_per_round: 20": "steps_per_round: 4",
}
# `simulate` on the small cases, and without --config with the small job
SIMULATE_SMALL = """\
if [ "$1" = simulate ]; then
  set -- "$@" --data {data}
  case "$*" in *--config*) ;; *) set -- "$@" --config {job} ;; esac
fi
"""


def run_tutorial(name, folder, first="", changes=None):
    """Run the blocks that are marked `sh` one after the other in one shell, in a folder with the examples.

    Args:
        name: of the page.
        folder: where to run.
        first: what the program `fedspleen` does before anything else, in sh.
        changes: texts that are replaced in the blocks.
    """
    blocks = re.findall(r"^```sh\n(.*?)^```$", (TUTORIALS / name).read_text(), flags=re.DOTALL | re.MULTILINE)
    assert blocks
    script = "\n".join(blocks)
    for text, other in (changes or {}).items():
        assert text in script
        script = script.replace(text, other)
    programs = folder / "programs"
    programs.mkdir()
    for program, words in (("fedspleen", "-m fl_app "), ("python", "")):
        (programs / program).write_text(f'#!/bin/sh\n{first if words else ""}exec {sys.executable} {words}"$@"\n')
        (programs / program).chmod(0o755)
    (folder / "provisioning").symlink_to(ROOT / "provisioning")
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        cwd=folder,
        env={**os.environ, "PATH": f"{programs}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_leads_tutorial_makes_kits_and_a_job(tmp_path):
    printed = run_tutorial("lead.md", tmp_path)
    assert {path.name for path in (tmp_path / "spleen-2026").glob("hospital-*.kit.zip")} == {
        f"hospital-{name}.kit.zip" for name in "abc"
    }
    # what the table at its end names
    done = fedspleen("provision", "consortium.yaml", "--renew", "hospital-a", cwd=tmp_path)
    assert done.returncode == 0 and "changed, to be sent again: spleen-2026/hospital-a.kit.zip" in done.stdout
    assert "fingerprint" in printed and load_job(tmp_path / "job.yaml").federation.min_sites == 2


def test_the_hospitals_tutorial_writes_settings_that_are_right(tmp_path):
    run_tutorial("hospital.md", tmp_path)
    assert read_site(tmp_path / "kit" / "site.yaml").threads == 8


@pytest.mark.long
def test_the_researchers_tutorial_trains_compares_predicts_and_exports(tmp_path):
    data = tmp_path / "results" / "phantom" / "2-sites-seed-0"  # where `simulate` would make it
    make_cohort(data, sites=2, seed=0, cases=[5, 5], detail=0.4)
    job = write_job(tmp_path / "small.yaml", data={"spacing_mm": [8, 8, 10]}, training={"steps_per_round": 4})
    printed = run_tutorial("researcher.md", tmp_path, SIMULATE_SMALL.format(data=data, job=job), SMALLER)
    for words in ("local: each site's own", "my-job.yaml: right", "tensors of round"):
        assert words in printed
    assert read_result(tmp_path / "results" / "mine" / "result.json").config["federation"]["algorithm"] == "fedprox"
    for path in ("results/compared/report.html", "segmented/spleen_s1_001_label.nii.gz", "exported/MODEL_CARD.md"):
        assert (tmp_path / path).is_file()
