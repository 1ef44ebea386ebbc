"""The whole path on one real CT, where it is at hand."""

import shutil
from pathlib import Path

import pytest

from fl_app.result import read_result
from tests.federation import fedspleen

pytestmark = pytest.mark.slow

PROJECT = Path(__file__).parents[1]
REAL_CT = PROJECT.parent / "shared" / "data" / "real_ct"


@pytest.mark.skipif(not REAL_CT.exists(), reason=f"the real CT is not there ({REAL_CT.name})")
def test_two_sites_that_hold_one_real_scan_learn_its_spleen(tmp_path):
    for site in ("north", "south"):
        shutil.copytree(REAL_CT, tmp_path / "data" / site / "scan")
        # two pairs of one case each would be two cases of one data set; this layout makes them sites
        for name, folder in (("ct", "imagesTr"), ("organs", "labelsTr")):
            (tmp_path / "data" / site / folder).mkdir()
            (tmp_path / "data" / site / "scan" / f"{name}.nii.gz").rename(
                tmp_path / "data" / site / folder / "one.nii.gz"
            )
        shutil.rmtree(tmp_path / "data" / site / "scan")
    job = PROJECT / "fl_app" / "jobs" / "one_scan.yaml"
    done = fedspleen("simulate", "--data", tmp_path / "data", "--config", job, "--out", tmp_path / "out", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    result = read_result(tmp_path / "out" / "result.json")
    assert set(result.final.sites) == {"north", "south"}
    assert result.final.mean_dice >= 0.9
    assert result.seconds < 180
    assert "count as background" in done.stdout, "the other 116 organs are mentioned"
    assert any("says nothing of other patients" in caveat for caveat in result.caveats)
