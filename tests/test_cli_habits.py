"""What people expect of any command: versions, completion, colour only where wanted, exit codes, a wheel that works."""

import json
import os
import pty
import re
import shutil
import subprocess
import sys
import zipfile

import pytest

from fl_app.result import software_versions
from tests.federation import fedspleen
from tests.test_house import ROOT, repository_files

# what would decide about colour in place of the terminal
PLAIN = {
    name: value
    for name, value in os.environ.items()
    if name not in ("NO_COLOR", "FORCE_COLOR", "PY_COLORS", "GITHUB_ACTIONS")
}
COLOUR = re.compile(r"\x1b\[[0-9;]*\b(?:3[0-8]|4[0-8]|9[0-7]|10[0-7])(?:;[0-9;]*)?m")


def test_version_names_all_that_decides_the_numbers():
    told = dict(line.split(" ", 1) for line in fedspleen("--version").stdout.splitlines())
    assert told.pop("device").startswith(("cpu", "cuda"))
    assert told == software_versions() and next(iter(told)) == "fedspleen"


def test_the_package_is_a_program():
    command = [sys.executable, "-m", "fl_app", "config", "show"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, cwd=ROOT)
    assert done.returncode == 0 and "data.spacing_mm" in done.stdout


def test_help_tells_the_exit_codes():
    done = fedspleen("--help", env={**os.environ, "COLUMNS": "200"})
    told = "0 done; 1 the work failed; 2 wrong use; 3 done, but falls short of what was asked for; 130 ended by Ctrl-C"
    assert told in " ".join(done.stdout.split())


@pytest.mark.parametrize(
    ("arguments", "code"),
    [(("config", "show"), 0), (("report", "nowhere"), 1), (("config", "check", "nowhere"), 2), (("no-such",), 2)],
)
def test_exit_codes_are_what_help_says(arguments, code):
    assert fedspleen(*arguments).returncode == code


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_shell_completes_commands(shell):
    words = {"bash": {"COMP_WORDS": "fedspleen dow", "COMP_CWORD": "1"}}
    asked = {
        "_FEDSPLEEN_COMPLETE": f"complete_{shell}",
        "_TYPER_COMPLETE_ARGS": "fedspleen dow",
        **words.get(shell, {}),
    }
    if shell == "fish":
        asked["_TYPER_COMPLETE_FISH_ACTION"] = "get-args"
    code = "import sys; sys.argv = ['fedspleen']; from fl_app.cli.__main__ import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, **asked},
    )
    assert "download" in done.stdout and "simulate" not in done.stdout, done.stderr


@pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not installed")
def test_completion_is_installed_for_the_name_that_is_typed(tmp_path):
    # a shell is needed: completion is installed for the one that asks
    command = ["bash", "-c", '"$@"; exit $?', "bash", sys.executable, "-m", "fl_app", "--install-completion"]
    environment = {**os.environ, "HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    assert "_FEDSPLEEN_COMPLETE=complete_bash" in (tmp_path / ".bash_completions" / "fedspleen.sh").read_text()


def in_terminal(*arguments, **variables):
    """What a command prints into a terminal."""
    environment = {**PLAIN, "TERM": "xterm-256color", "COLUMNS": "100", **variables}
    leader, follower = pty.openpty()
    command = [sys.executable, "-m", "fl_app", *map(str, arguments)]
    process = subprocess.Popen(command, stdin=follower, stdout=follower, stderr=follower, env=environment, cwd=ROOT)
    os.close(follower)
    printed = b""
    try:
        while piece := os.read(leader, 65536):
            printed += piece
    except OSError:
        pass  # Linux's way to say that the other end is closed
    process.wait(timeout=60)
    os.close(leader)
    return printed.decode()


def test_colour_is_for_terminals_that_want_it():
    assert COLOUR.search(in_terminal("--help"))
    assert not COLOUR.search(in_terminal("--help", NO_COLOR="1"))
    assert not COLOUR.search(in_terminal("config", "show", NO_COLOR="1"))
    assert "\x1b" not in fedspleen("--help", env=PLAIN).stdout, "a pipe gets plain text"


@pytest.mark.slow
def test_a_wheel_works_outside_the_checkout(tmp_path):
    """Built from what is committed, unpacked elsewhere, run from there."""
    source = tmp_path / "source"
    for name, _ in repository_files():
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, source / name)
    build = "import setuptools.build_meta as backend, sys; print(backend.build_wheel(sys.argv[1]))"
    done = subprocess.run(
        [sys.executable, "-c", build, str(tmp_path)],
        cwd=source,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        held = set(archive.namelist())
        archive.extractall(tmp_path / "installed")
    wanted = {
        str(path.relative_to(ROOT))
        for package in ("fl_app", "server", "clients", "provisioning")
        for path in (ROOT / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert wanted <= held, "every file of the packages: code, jobs, examples, templates, py.typed"
    assert {"fl_app/py.typed", "fl_app/jobs/quick.yaml", "fl_app/reports/templates/run.html"} <= held
    assert not any(name.startswith(("tests", "benchmarks", "docs")) for name in held)

    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "installed")}

    def run(*arguments):
        return subprocess.run(
            arguments, cwd=elsewhere, env=environment, capture_output=True, text=True, timeout=120, check=True
        ).stdout

    assert str(tmp_path / "installed") in run(sys.executable, "-c", "import fl_app; print(fl_app.__file__)")
    assert run(sys.executable, "-m", "fl_app", "--version").startswith("fedspleen ")
    assert "data.spacing_mm" in run(sys.executable, "-m", "fl_app", "config", "show")
    reader = "import json, fl_app.reports.page as page; print(json.dumps(sorted(page.environment().list_templates())))"
    assert "run.html" in json.loads(run(sys.executable, "-c", reader))


def test_commands_start_without_what_only_training_needs():
    code = "import sys, fl_app.cli.__main__; print({'torch', 'monai', 'nvflare'} & sys.modules.keys() or '')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.split() == []


def test_a_simulation_checks_its_data_without_what_only_training_needs(tmp_path):
    """Seconds pass until torch and MONAI are imported: in the processes that need them, not in this one first."""
    code = (
        "import sys; from fl_app.cli.__main__ import app\n"
        f"try: app(['simulate', '--data', {str(tmp_path / 'none')!r}, '--out', {str(tmp_path / 'out')!r}])\n"
        "finally: print('imported', {'torch', 'monai', 'nvflare'} & sys.modules.keys() or '')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert "does not exist" in done.stderr
    assert done.stdout.splitlines()[-1].split() == ["imported"]
