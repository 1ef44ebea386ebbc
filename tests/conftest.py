"""What the tests of faults have done is told at the end of every run of them, and written to a file."""

import json
from collections import Counter
from dataclasses import dataclass, field

import pytest

FAULTS_FILE = ".pytest_cache/faults.json"


@dataclass
class Tally:
    """What all tests of faults add up to.

    Attributes:
        injected: how often each fault was caused.
        finished: runs that came to their end.
        lost: sites' results that a server had accepted and that are not in its model, or are in it twice.
        longest_wait: seconds of the longest wait beyond its limit.
    """

    injected: Counter[str] = field(default_factory=Counter)
    finished: int = 0
    lost: int = 0
    longest_wait: float = 0.0

    def add(self, injected, finished=1, lost=0, wait=0.0):
        """Add what one test has done; ``injected`` are names of faults."""
        self.injected.update(injected)
        self.finished += finished
        self.lost += lost
        self.longest_wait = max(self.longest_wait, wait)


_TALLY = pytest.StashKey[Tally]()


def pytest_configure(config):
    config.stash[_TALLY] = Tally()


@pytest.hookimpl(trylast=True)  # after the order of the tests was drawn
def pytest_collection_modifyitems(items):
    """Files with slow tests come first, so that no worker is left with one of them at the end."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(scope="session")
def tally(pytestconfig):
    """Where a test of faults adds what it has done."""
    return pytestconfig.stash[_TALLY]


def pytest_sessionfinish(session):
    """A worker of pytest-xdist hands over what its tests have done."""
    if hasattr(session.config, "workeroutput"):
        done = session.config.stash[_TALLY]
        session.config.workeroutput["faults"] = {**vars(done), "injected": dict(done.injected)}


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node, error):
    """A worker has ended; it has handed over nothing if it was killed, which pytest-xdist reports."""
    done = getattr(node, "workeroutput", {}).get("faults")
    if done:
        wait = done.pop("longest_wait")
        node.config.stash[_TALLY].add(wait=wait, **done)


def pytest_terminal_summary(terminalreporter, config):
    done = config.stash[_TALLY]
    if not done.injected:
        return
    path = config.rootpath / FAULTS_FILE
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({**vars(done), "injected": dict(done.injected)}, indent=2) + "\n")
    terminalreporter.section("faults")
    terminalreporter.write_line(
        f"{done.injected.total()} faults injected, {done.finished} runs finished, {done.lost} results lost, "
        f"longest wait {done.longest_wait:.2f} s beyond its limit"
    )
    terminalreporter.write_line(", ".join(f"{count} {fault}" for fault, count in done.injected.most_common()))
    terminalreporter.write_line(f"written to {FAULTS_FILE}")
