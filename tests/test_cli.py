"""The command line answers at once and in plain words."""

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from fl_app.cli.__main__ import app
from tests.federation import fedspleen, write_job, write_sites


def every_command(command, path=()):
    yield path
    for name, inner in getattr(command, "commands", {}).items():
        yield from every_command(inner, (*path, name))


def test_help_of_every_command_is_enough_to_use_it():
    expected = ["simulate", "phantom", "config", "config show", "config check", "provision", "submit", "status"]
    expected += ["follow", "abort", "download", "report"]
    expected += ["server start", "server stop", "client start", "client stop", "client check", "client settings"]
    expected += [f"kit {name}" for name in ("verify", "unpack", "list", "revoke", "request", "approve", "assemble")]
    paths = list(every_command(get_command(app)))
    assert set(expected) <= set(map(" ".join, paths))
    for path in paths:
        done = CliRunner().invoke(app, [*path, "--help"])
        assert done.exit_code == 0 and "Usage" in done.stdout, path
    assert "--compare" in fedspleen("simulate", "--help").stdout


def test_config_show_prints_every_setting():
    done = fedspleen("config", "show")
    assert done.returncode == 0
    for words in ("data.spacing_mm", "in mm", "federation.round_time_limit_s", "novograd"):
        assert words in done.stdout


def test_a_job_file_with_five_mistakes_is_reported_whole(tmp_path):
    path = tmp_path / "job.yaml"
    path.write_text(
        "seed: -1\n"
        "data:\n  labels: {spleen: 0}\n  spacing: [1, 1, 1]\n"
        "training:\n  optimizer: adm\n"
        "federation:\n  best_metric: val_dise\n"
    )
    for command in (("config", "check", path), ("simulate", "--config", path, "--out", tmp_path / "out")):
        done = fedspleen(*command)
        assert done.returncode == 2
        for line, key in ((1, "seed"), (3, "data.labels.spleen"), (4, "data.spacing"), (6, "training.optimizer")):
            assert f"{path}:{line} {key}: " in done.stderr
        assert f"{path}:8 federation.best_metric: 'val_dise' - " in done.stderr
        assert "(did you mean val_dice?)" in done.stderr and "(did you mean spacing_mm?)" in done.stderr
        assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--data", "nowhere"], 1, "nowhere"),
        (["--config", "nowhere.yaml"], 2, "there is no such job file"),
        (["--data", "data", "--sites", "5"], 2, "--sites 5"),
        (["--data", "data/site-1", "--split", "dirichlet:-1"], 2, "dirichlet"),
        (["--data", "data/site-1", "--sites", "9"], 1, "cases"),
        (["--data", "data", "--device", "gpu"], 2, "one of auto, cpu, cuda"),
        (["--data", "data", "--config", "greedy.yaml"], 2, "federation.min_sites: 5 - at most 2"),
        (["--sites", "0"], 2, "--sites"),
        (["--rounds", "no"], 2, "--rounds"),
        (["--sites", "two"], 2, "--sites"),
    ],
)
def test_wrong_arguments_end_in_one_sentence(tmp_path, arguments, code, words):
    write_sites(tmp_path / "data", site_1=4, site_2=4)
    write_job(tmp_path / "job.yaml")
    write_job(tmp_path / "greedy.yaml", federation={"min_sites": 5})
    if "--config" not in arguments:
        arguments = ["--config", "job.yaml", *arguments]
    done = fedspleen("simulate", *arguments, cwd=tmp_path)
    assert done.returncode == code, done.stderr
    assert words in done.stderr and "Traceback" not in done.stderr
