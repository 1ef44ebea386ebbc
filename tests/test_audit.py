import json
import multiprocessing
import os
import resource
import signal
import time

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from fl_app.cli.__main__ import app
from fl_app.errors import UsageError
from fl_app.ledger import Ledger, digest, verify_ledger


@pytest.fixture
def path(tmp_path):
    """A trail of five lines."""
    ledger = Ledger(tmp_path / "audit" / "trail.jsonl")
    for number in range(1, 6):
        ledger.write("received", job="spleen", round=number, names=42, bytes=19_000_000, sha256_of_values="ab" * 32)
    return ledger.path


def lines_of(path):
    return path.read_bytes().splitlines(keepends=True)


def with_lines(path, lines):
    path.write_bytes(b"".join(lines))
    return verify_ledger(path)


def test_what_is_written_is_found_intact(path):
    report = verify_ledger(path)
    assert report.lines == 5 and report.problem == "" and report.torn == 0
    assert report.first <= report.last
    last = json.loads(lines_of(path)[-1])
    assert last["event"] == "received" and last["round"] == 5 and last["sha256"] == report.head
    assert path.stat().st_mode & 0o077 == 0


def test_writing_returns_the_head(path):
    head = Ledger(path).write("accepted", site="site-1", good=True, why=None, share=0.25)
    assert verify_ledger(path, head).head == head


def test_a_changed_line_is_named(path):
    lines = lines_of(path)
    lines[2] = lines[2].replace(b'"round": 3', b'"round": 4')
    report = with_lines(path, lines)
    assert (report.lines, report.problem) == (2, "line 3 was changed")


def test_a_removed_line_is_named(path):
    lines = lines_of(path)
    report = with_lines(path, lines[:1] + lines[2:])
    assert report.lines == 1 and "line 2 is missing" in report.problem and "line 3 stands there" in report.problem


def test_moved_lines_are_named(path):
    a, b, c, d, e = lines_of(path)
    assert "line 2 is missing or out of its place: line 3 stands there" in with_lines(path, [a, c, b, d, e]).problem


def test_a_repeated_line_is_named(path):
    a, b, *others = lines_of(path)
    assert "line 3 is out of its place: it was written as line 2" in with_lines(path, [a, b, b, *others]).problem


def test_a_line_replaced_by_a_whole_one_of_another_trail_is_named(path, tmp_path):
    other = Ledger(tmp_path / "other.jsonl")
    for number in range(3):
        other.write("refused", round=number)
    lines = lines_of(path)
    lines[2] = lines_of(other.path)[2]
    assert "line 3 does not follow from the line before it" in with_lines(path, lines).problem


def test_a_missing_end_shows_by_the_head_only(path):
    head = verify_ledger(path).head
    with_lines(path, lines_of(path)[:3])
    assert verify_ledger(path).problem == ""
    assert "lines are missing at the end" in verify_ledger(path, head).problem


def test_a_trail_written_anew_shows_by_the_head(path):
    head = verify_ledger(path).head
    path.unlink()
    for number in range(1, 6):
        Ledger(path).write("received", round=number)
    assert verify_ledger(path).problem == ""
    assert "written anew" in verify_ledger(path, head).problem


def test_an_earlier_head_is_found_in_a_trail_that_has_grown(path):
    head = verify_ledger(path).head
    Ledger(path).write("sent")
    report = verify_ledger(path, f" {head.upper()}\n")
    assert report.problem == "" and report.lines == 6


@pytest.mark.parametrize("head", ["", "12", "g" * 64, "0x" + "1" * 62])
def test_a_head_that_is_none_is_said(path, head):
    with pytest.raises(UsageError, match="--head takes 64 digits"):
        verify_ledger(path, head)


def test_a_missing_file_is_said(tmp_path):
    with pytest.raises(UsageError, match=r"trail\.jsonl: cannot be read: No such file"):
        verify_ledger(tmp_path / "trail.jsonl")


def test_an_empty_trail_is_intact(tmp_path):
    (tmp_path / "trail.jsonl").touch()
    report = verify_ledger(tmp_path / "trail.jsonl")
    assert (report.lines, report.problem, report.head) == (0, "", "0" * 64)


@pytest.mark.promise(
    "trail: changed by hand",
    "`fedspleen audit verify` names the first wrong line",
)
@given(st.data())
@settings(max_examples=100, deadline=None)
def test_any_change_of_bytes_before_the_last_line_is_found(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("any") / "trail.jsonl"
    for number in range(4):
        Ledger(path).write("sent", round=number, why='grüße \u2028 "quoted"')
    content = bytearray(path.read_bytes())
    place = data.draw(st.integers(0, len(content) - 2))
    content[place] = data.draw(st.integers(0, 255).filter(lambda byte: byte != content[place]))
    path.write_bytes(content)
    report = verify_ledger(path)
    assert report.problem and report.lines < 4


@given(st.binary(max_size=400) | st.text(max_size=200).map(str.encode))
@settings(max_examples=200, deadline=None)
def test_no_content_breaks_the_verification_or_the_next_line(tmp_path_factory, content):
    path = tmp_path_factory.mktemp("any") / "trail.jsonl"
    path.write_bytes(content)
    before = verify_ledger(path)
    Ledger(path).write("sent")
    after = verify_ledger(path)
    whole = content[: content.rfind(b"\n") + 1]
    assert path.read_bytes().startswith(whole)
    assert bool(before.problem) == bool(after.problem)


def test_every_torn_end_is_recognised_and_the_trail_goes_on(path):
    content = path.read_bytes()
    start = content.rfind(b"\n", 0, -1) + 1
    for end in range(start + 1, len(content)):
        path.write_bytes(content[:end])
        report = verify_ledger(path)
        assert (report.lines, report.problem, report.torn) == (4, "", end - start)
    Ledger(path).write("sent")
    assert [json.loads(line)["event"] for line in lines_of(path)[4:]] == ["torn", "sent"]
    assert json.loads(lines_of(path)[4])["bytes"] == len(content) - 1 - start
    assert verify_ledger(path).lines == 6 and verify_ledger(path).problem == ""


def test_lines_longer_than_a_block_are_read_back(tmp_path):
    ledger = Ledger(tmp_path / "trail.jsonl")
    for size in (10, 65536, 200_000, 3):
        ledger.write("refused", why="x" * size)
    assert verify_ledger(ledger.path).lines == 4 and verify_ledger(ledger.path).problem == ""


def test_a_fact_cannot_take_the_place_of_the_chain(path):
    with pytest.raises(ValueError, match="previous"):
        Ledger(path).write("sent", previous="0" * 64)
    assert verify_ledger(path).lines == 5


@pytest.mark.promise(
    "trail: a kill in the middle of a line",
    "no finished line is lost; the torn one is told",
)
def test_a_kill_at_any_moment_loses_no_finished_line(tmp_path):
    path = tmp_path / "trail.jsonl"
    lines = 0
    for _ in range(15):
        child = multiprocessing.get_context("fork").Process(target=_write_for_ever, args=(path,))
        child.start()
        time.sleep(0.02)
        os.kill(child.pid, signal.SIGKILL)
        child.join()
        report = verify_ledger(path)
        assert report.problem == "" and report.lines >= lines
        lines = report.lines
    assert lines > 15
    assert verify_ledger(path, Ledger(path).write("sent")).problem == ""


def _write_for_ever(path):
    while True:
        Ledger(path).write("received", why="y" * 3000)


def _write_until_full(path, limit):
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    for _ in range(100):
        try:
            Ledger(path).write("received", why="z" * 1000)
        except OSError:
            os._exit(7)
    os._exit(0)


@pytest.mark.promise(
    "trail: disk full",
    "finished lines stay, no other does",
)
def test_a_full_disk_leaves_the_finished_lines_and_no_other(tmp_path):
    path = tmp_path / "trail.jsonl"
    child = multiprocessing.get_context("fork").Process(target=_write_until_full, args=(path, 10_000))
    child.start()
    child.join()
    assert child.exitcode == 7
    report = verify_ledger(path)
    assert report.problem == "" and report.torn == 0
    assert report.lines == 10_000 // len(lines_of(path)[0])
    Ledger(path).write("sent")
    assert verify_ledger(path).lines == report.lines + 1


def test_processes_that_write_at_once_make_one_chain(tmp_path):
    path = tmp_path / "trail.jsonl"
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=_write_some, args=(path, name)) for name in "abc"]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert verify_ledger(path).lines == 90 and verify_ledger(path).problem == ""


def _write_some(path, name):
    for number in range(30):
        Ledger(path).write("received", site=name, number_of_its_own=number)


# digests


def values():
    random = torch.Generator().manual_seed(3)
    return {
        "conv.weight": torch.randn(4, 3, 3, 3, 3, generator=random),
        "scale": torch.tensor(2.5),
        "none": torch.zeros(0, 3),
        "half": torch.ones(5, dtype=torch.bfloat16),
    }


def test_a_digest_is_that_of_the_values_not_of_their_layout_or_order():
    changed = dict(reversed(values().items()))
    changed["conv.weight"] = changed["conv.weight"].to(memory_format=torch.channels_last_3d)
    assert digest(changed) == digest(values()) and len(digest(values())) == 64


@pytest.mark.parametrize(
    "change",
    [
        {"scale": torch.tensor(2.5).nextafter(torch.tensor(3.0))},
        {"scale": torch.tensor([2.5])},
        {"scale": torch.tensor(2.5, dtype=torch.float64)},
        {"none": torch.zeros(3, 0)},
        {"more": torch.zeros(0)},
    ],
    ids=["a bit", "the shape", "the type", "an empty shape", "a name"],
)
def test_a_digest_changes_with(change):
    assert digest(values() | change) != digest(values())


# the command


def audit(*arguments):
    return CliRunner().invoke(app, ["audit", "verify", *map(str, arguments)])


def test_the_command_says_intact_and_the_head(path):
    done = audit(path)
    assert done.exit_code == 0 and "intact, 5 lines" in done.output
    assert f"head: {verify_ledger(path).head}" in done.output


def test_the_command_names_the_first_wrong_line_and_fails(path):
    lines = lines_of(path)
    path.write_bytes(b"".join(lines[:3] + lines[4:]))
    done = audit(path)
    assert done.exit_code == 1 and "WRONG: line 4 is missing" in done.output
    assert "the 3 lines before it are intact" in done.output


def test_the_command_tells_of_a_torn_line_and_does_not_fail(path):
    path.write_bytes(path.read_bytes()[:-20])
    done = audit(path)
    assert done.exit_code == 0 and "intact, 4 lines" in done.output
    assert "a line that was never finished" in done.output


def test_the_command_compares_the_head(path):
    head = verify_ledger(path).head
    assert audit(path, "--head", head).exit_code == 0
    path.write_bytes(b"".join(lines_of(path)[:-1]))
    done = audit(path, "--head", head)
    assert done.exit_code == 1 and "lines are missing at the end" in done.output


def test_the_command_prints_json(path):
    report = json.loads(audit(path, "--json").output)
    assert report["intact"] is True and report["lines"] == 5
