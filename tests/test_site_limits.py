"""A site's own limits, and how its settings are read and listed."""

from pathlib import Path

import pytest

from fl_app.config import Job
from fl_app.deployment.preflight import check_client
from fl_app.errors import ConfigError
from fl_app.site import SITE_FILE_VARIABLE, SiteLimits, SiteSettings, load_site, read_site, write_site
from fl_app.site_limits import refusals
from tests.federation import write_sites
from tests.test_consortium import fedspleen_in_process  # noqa: F401 - the fixture fedspleen
from tests.test_preflight import free_port, make_kits

JOB = Job(
    data={"patch_voxels": [32, 32, 16]},
    network={"channels": [8, 16]},
    training={"batch_size": 2, "steps_per_round": 50},
    federation={"rounds": 10},
)


def site(**limits):
    return SiteSettings(data=Path("data"), limits=limits)


def test_a_site_without_limits_takes_part_in_anything():
    assert refusals(JOB, site(), training_cases=0) == []


@pytest.mark.parametrize(
    ("allowed", "forbidden", "words"),
    [
        ({"max_rounds": 10}, {"max_rounds": 9}, "federation.rounds 10, this site allows 9"),
        ({"max_steps_per_round": 50}, {"max_steps_per_round": 49}, "steps_per_round 50, this site allows 49"),
        ({"max_voxels_per_step": 32768}, {"max_voxels_per_step": 32767}, "32768, this site allows 32767"),
        ({"min_training_cases": 3}, {"min_training_cases": 4}, "would train on 3 cases, it asks for 4"),
        ({"networks": ["unet"]}, {"networks": ["segresnet", "dynunet"]}, "unet, this site allows segresnet, dynunet"),
        ({"share_normalisation": True}, {"share_normalisation": False}, "normalisation average, this site needs local"),
    ],
)
def test_each_limit_holds_from_its_value_on_and_names_its_key(allowed, forbidden, words):
    assert refusals(JOB, site(**allowed), training_cases=3) == []
    (reason,) = refusals(JOB, site(**forbidden), training_cases=3)
    assert words in reason and reason.startswith(f"limits.{next(iter(forbidden))}: ")


def test_all_reasons_come_at_once_and_a_stricter_job_is_welcome():
    strict = site(max_rounds=1, max_steps_per_round=1, networks=[], share_normalisation=False, min_training_cases=9)
    assert len(refusals(JOB, strict, training_cases=3)) == 5
    assert len(refusals(JOB, strict)) == 4, "how many cases there are is not known yet"
    local = JOB.model_copy(update={"federation": JOB.federation.model_copy(update={"normalisation": "local"})})
    assert refusals(local, site(share_normalisation=False)) == []


def test_mistakes_in_a_site_file_are_all_told_with_their_lines(tmp_path):
    path = tmp_path / "site.yaml"
    path.write_text("devise: cpu\nmemory_budget_gib: 0\nlimits:\n  max_rounds: many\n  netwoks: [unet]\n")
    with pytest.raises(ConfigError) as caught:
        read_site(path)
    told = str(caught.value)
    for words in (
        "site.yaml:1 data: missing - folder with this site's images",
        "site.yaml:1 devise: unknown key",
        "(did you mean device?)",
        "site.yaml:2 memory_budget_gib: 0 - more than 0",
        "site.yaml:4 limits.max_rounds: 'many' - a whole number",
        "(did you mean networks?)",
    ):
        assert words in told
    with pytest.raises(ConfigError, match="there is no such site file"):
        read_site(tmp_path / "nowhere.yaml")


def test_what_is_written_is_read_again_and_each_job_has_its_own_output(tmp_path, monkeypatch):
    settings = SiteSettings(data=Path("/data"), output=Path("/out/{job}"), limits={"max_rounds": 3})
    write_site(tmp_path / "a" / "site.yaml", settings)
    assert read_site(tmp_path / "a" / "site.yaml") == settings
    monkeypatch.setenv(SITE_FILE_VARIABLE, str(tmp_path / "{site}" / "site.yaml"))
    assert load_site("a", "job-1").output == Path("/out/job-1")


def test_every_key_is_listed_with_its_meaning(tmp_path, fedspleen):
    path = tmp_path / "site.yaml"
    path.write_text("data: /data\nlimits: {max_rounds: 7}\n")
    done = fedspleen("client", "settings", path)
    keys = {*SiteSettings.model_fields, *(f"limits.{key}" for key in SiteLimits.model_fields)} - {"limits"}
    assert done.returncode == 0 and all(key in done.stdout for key in keys)
    assert "7" in done.stdout and "GiB" in done.stdout


def test_the_check_reports_what_the_limits_say_of_a_job(tmp_path):
    kit = make_kits(tmp_path / "kits", port=free_port()) / "site-1"
    data = write_sites(tmp_path / "data", site_1=4) / "site-1"
    settings = SiteSettings(data=data, limits={"max_rounds": 9, "min_training_cases": 4}, memory_budget_gib=10**6)
    found = check_client(kit, settings, JOB)
    limits = [finding for finding in found.findings if finding.code == "limits"]
    assert not found.good and len(limits) == 2 and all(finding.remedy for finding in limits)
    assert any(finding.code == "memory-budget" for finding in found.findings)
    assert check_client(kit, settings).good, "without a job there is nothing to refuse"
