"""docs/configuration.md says what the code says."""

import pytest
from pydantic import BaseModel

from fl_app.cli.markdown import configuration_page
from fl_app.config import Job
from fl_app.site import SiteSettings
from tests.federation import fedspleen
from tests.test_house import ROOT


def keys(section, prefix=""):
    """Every setting below a section, as it is written: data.labels, ..."""
    for name in type(section).model_fields:
        value = getattr(section, name)
        if isinstance(value, BaseModel):
            yield from keys(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


def test_the_page_is_up_to_date():
    made = (ROOT / "docs" / "configuration.md").read_text()
    assert made == configuration_page(), "make it again: fedspleen config show --markdown > docs/configuration.md"


def test_every_setting_is_on_it():
    page = configuration_page()
    for key in (
        *keys(Job()),
        *keys(SiteSettings(data="folder")),
        "server.hosts",
        "sites[].name",
        "administrators[].role",
    ):
        assert f"| `{key}` |" in page, key


@pytest.mark.parametrize(
    "line",
    [
        "| `data.window_hu` | list of 2: number | `[-160.0, 240.0]` |",
        "| `data.labels` | names, each with: whole number from 1 to 65535 | `{spleen: 1}` |",
        "| `training.learning_rate` | number above 0 to 10 | `0.002` |",
        "| `threads` | whole number from 1 | `none` |",
        "| `administrators[].role` | one of `lead`, `site-admin`, `member` | **required** |",
    ],
)
def test_types_limits_and_defaults_are_in_words(line):
    assert line in configuration_page()


def test_the_command_prints_it_and_takes_no_file(tmp_path):
    assert fedspleen("config", "show", "--markdown").stdout == configuration_page()
    done = fedspleen("config", "show", tmp_path / "job.yaml", "--markdown")
    assert done.returncode == 2 and "leave the file out" in done.stderr
