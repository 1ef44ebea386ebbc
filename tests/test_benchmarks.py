"""Every benchmark is in the suite that benchmarks/run.sh runs, and in the table of benchmarks/README.md."""

import re
from pathlib import Path

from benchmarks.run import Entry, Outcome, place, read_suite, report, run

FOLDER = Path(__file__).parents[1] / "benchmarks"


def test_the_suite_and_the_readme_name_every_benchmark():
    runnable = {
        path.stem
        for path in FOLDER.glob("*.py")
        if path.stem != "run" and 'if __name__ == "__main__"' in path.read_text()
    }
    assert runnable == {entry.name for entry in read_suite()}
    told = set(re.findall(r"python -m benchmarks\.(\w+)", (FOLDER / "README.md").read_text()))
    assert runnable == told


def test_a_benchmark_that_fails_or_takes_too_long_is_named_and_its_output_kept():
    wrong = run(Entry("no_such_thing", 1, ()))
    late = run(Entry("decoding", 0, ()))
    assert wrong.failure == "it ended with exit code 1" and late.failure == "it was not done within 0 minutes"
    text = report([Entry("decoding", 1, ()), Entry("other", 1, ())], {"decoding": late})
    assert "**Failed: it was not done within 0 minutes.**" in text and "## other\n\nNot run." in text


def test_what_a_benchmark_printed_stands_in_the_results():
    done = Outcome(
        "python -m benchmarks.decoding", "abc", "2026-11-21T12:00+00:00", 5, "", "3.5 times sooner\n", place("")
    )
    text = report([Entry("decoding", 1, ())], {"decoding": done})
    assert "```\n3.5 times sooner\n```" in text and "commit abc" in text and "torch" in text and "GPU" in text


def test_the_results_of_benchmarks_that_are_not_run_stay_with_where_and_when_they_were_made():
    one = Outcome("python -m benchmarks.decoding", "abc", "2026-11-21T12:00+00:00", 3900, "", "## 1", "a laptop")
    other = Outcome("python -m benchmarks.transfer", "def", "2026-11-22T12:00+00:00", 60, "it ended", "2", "a server")
    entries = [Entry(name, 1, ()) for name in ("decoding", "transfer", "inference")]
    first = report(entries, {"decoding": one})
    both = report(entries, {"transfer": other}, first)
    assert both == report(entries, {"decoding": one, "transfer": other}) != first
    assert "2026-11-21T12:00+00:00, 3900 s  \na laptop\n" in both and "a server" in both and "Not run." in both
    assert place("other work was going on").endswith("; other work was going on")
    gone = report(entries[1:], {}, both)
    assert "decoding" not in gone and "a server" in gone
