"""Every command in README.md and docs/ exists as it is typed; every link between the pages leads somewhere."""

import re
from pathlib import Path

import pytest

from tests.docs_commands import Shown, check_arguments, problems_of, shown_commands, uses

ROOT = Path(__file__).parents[1]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_exists_as_it_is_typed(page):
    found = [
        f"{page.name}:{shown.line}: {problem} in: {shown.text}"
        for shown in shown_commands(page.read_text())
        for problem in problems_of(shown)
    ]
    assert found == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_somewhere(page):
    targets = re.findall(r"\]\((?!https?:)([^)#]+)[^)]*\)", page.read_text())
    assert [target for target in targets if not (page.parent / target).exists()] == []


def test_every_command_and_option_that_a_page_shows_is_run_by_a_test():
    """Typed in a test as the program's arguments, or in what tests run whole: the demo, the tutorials' `sh` blocks."""
    tutorials = "".join(page.read_text() for page in PAGES if page.parent.name == "tutorials")
    run_whole = (ROOT / "demo.sh").read_text() + "".join(re.findall(r"^```sh\n.*?^```$", tutorials, re.S | re.M))
    tests = "".join(path.read_text() for path in ROOT.glob("tests/test_*.py") if path != Path(__file__))
    shown = {use for page in PAGES for each in shown_commands(page.read_text()) for use in uses(each)}
    assert len(shown) > 50
    never_run = {
        words
        for words in shown
        if '"' + words.replace(" ", '", "') + '"' not in tests
        and not re.search(rf"[ \[]{re.escape(words)}\b", run_whole)
    }
    assert never_run == set()


@pytest.mark.parametrize(
    ("typed", "problem"),
    [
        ("fedspleen kit lock NAME", "kit lock: there is no such command"),
        ("sudo --user fedspleen /opt/.venv/bin/fedspleen client start K --datum D", "--datum: there is no such option"),
        ("fedspleen submit job.yaml", "submit: kit is missing"),
        ("fedspleen provision a.yaml b.yaml", "'b.yaml' is one argument too many"),
        ("cd x && fedspleen download JOB --kit K --out", "--out: its value is missing"),
        ("fedspleen status|forget ...", "forget: there is no such command"),
        ("docker run --rm fedspleen:0.1.0 kit verfy K", "kit verfy: there is no such command"),
        ("docker compose --file c.yaml run --rm site client chek /kit", "client chek: there is no such command"),
        ("./simulate.sh --side 3", "--side: there is no such option"),
        ("--nonsense fedspleen", ""),
        ("docker build --tag fedspleen:0.1.0 .", ""),
        ("fedspleen status|follow ...   # see --help", ""),
        ("fedspleen kit revoke SITE --admin KIT [--undo]", ""),
    ],
)
def test_what_is_typed_wrong_is_found(typed, problem):
    found = problems_of(Shown(1, typed, True))
    assert len(found) == bool(problem) and (not problem or problem in found[0])


def test_a_mention_in_a_sentence_may_leave_arguments_out():
    assert check_arguments(["submit", "job.yaml"], whole=False) == []
    assert check_arguments(["submit", "--jobs"], whole=False) == ["fedspleen submit --jobs: there is no such option"]


def test_commands_are_found_in_blocks_and_in_sentences():
    page = "One `fedspleen\nversion` here.\n```\nfedspleen submit a \\\n  --kit b\n```\nand `x`"
    found = shown_commands(page)
    assert [(shown.line, shown.text.split()[:2], shown.whole) for shown in found] == [
        (4, ["fedspleen", "submit"], True),
        (1, ["fedspleen", "version"], False),
        (7, ["x"], False),
    ]
