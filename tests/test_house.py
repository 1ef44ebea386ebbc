"""Rules of the house: style, types, and which room may know of which (DESIGN, section 2)."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("fl_app", "server", "clients", "provisioning")
SOURCES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
LINT_IMPORTS = "from importlinter.cli import lint_imports_command; lint_imports_command()"


def run(*arguments):
    done = subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ("-m", "ruff", "check", "."),
        ("-m", "ruff", "format", "--check", "."),
        ("-m", "mypy"),
        ("-c", LINT_IMPORTS, "--no-cache"),
    ],
    ids=["ruff check", "ruff format", "mypy", "import-linter"],
)
def test_the_code_passes(arguments):
    run(*arguments)


def test_no_file_is_too_long_to_read_at_once():
    lengths = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in SOURCES}
    assert {name: length for name, length in lengths.items() if length > 300} == {}


def test_every_package_says_what_it_is_for():
    folders = {path.parent for path in SOURCES}
    assert len(folders) >= 8
    for folder in folders:
        assert ast.get_docstring(ast.parse((folder / "__init__.py").read_text())), folder


def imported(path):
    """The top-level packages that a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (each.name.split(".")[0] for each in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module.split(".")[0]


def test_flare_is_imported_only_where_it_belongs():
    users = {str(path.relative_to(ROOT)) for path in SOURCES if "nvflare" in imported(path)}
    assert "server/federation.py" in users
    assert {name for name in users if not re.match(r"(server|clients|provisioning)/|fl_app/job\.py$", name)} == set()


def test_the_learning_code_loads_without_flare():
    code = "import sys; sys.modules['nvflare'] = None; import fl_app.training.trainer, fl_app.baselines"
    run("-c", code)


def test_handing_in_a_job_and_making_a_page_need_no_torch():
    code = "import sys; sys.modules['torch'] = None; import fl_app.cli.__main__, fl_app.deployment.jobs, fl_app.job"
    run("-c", f"{code}, fl_app.reports.page, fl_app.reports.site_page")


def repository_files():
    """Every text file that is committed or about to be."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("this is no git checkout")
    for name in filter(None, done.stdout.split("\0")):
        try:
            yield name, (ROOT / name).read_text(encoding="utf-8")
        except (UnicodeDecodeError, FileNotFoundError, IsADirectoryError):
            continue


def holders(pattern):
    return {f"{name}: {found[0]}" for name, text in repository_files() for found in re.finditer(pattern, text)}


def test_no_file_holds_a_path_of_the_machine_it_was_written_on():
    # in pieces, so that this file does not hold them itself
    assert holders(r"(?<![\w.$}/-])/(?:" + "wo" + "rk|" + "tm" + r"p/)(?![\w-])") == set()
    assert holders(r"/(?:home|Users)/" + r"[a-z]\w+/") == set()


def test_no_file_holds_a_key_a_certificate_or_a_password():
    assert holders("-----BEGIN" + r" [A-Z ]*(?:PRIVATE KEY|CERTIFICATE)") == set()
    assert holders(r"(?:AKIA|ghp_|hf_|xox[bp]-)" + r"[A-Za-z0-9]{16,}") == set()
    assert holders(r"(?i)(?:password|secret|token)" + r"\s*[:=]\s*['\"][^'\"{}<>$ ]{6,}['\"]") == set()


def test_no_file_holds_a_key_by_its_name():
    names = {name for name, _ in repository_files()}
    assert {name for name in names if re.search(r"\.(pem|key|crt|p12|pfx|env)$", name)} == set()
