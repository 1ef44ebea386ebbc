"""Faults at one site that the others must not feel, and whom a round waits for."""

import gc
import os
import resource
import subprocess
import threading
from contextlib import suppress
from pathlib import Path

import numpy as np
import psutil
import pytest

from fl_app.config_file import load_job
from fl_app.errors import FederationError
from fl_app.rehearsal import rehearsal_channel, rehearse
from fl_app.site import SiteSettings
from server.channel import Payload
from server.exchange import Exchange
from server.participants import Participants
from server.record import Record
from tests.federation import write_job, write_sites

SITES = ("site-1", "site-2", "site-3")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_sites(tmp_path_factory.mktemp("data"), site_1=4, site_2=4, site_3=4)


def settings(data, folder, names=SITES):
    return {
        site: SiteSettings(data=data / site, threads=1, cache=data / "cache", state=folder / site) for site in names
    }


def make_job(folder, rounds, **federation):
    return load_job(
        write_job(
            folder / "job.yaml",
            training={"steps_per_round": 1, "precision": "fp32"},
            network={"channels": [2, 4]},
            federation={"rounds": rounds, **federation},
        )
    )


@pytest.mark.promise(
    "run: 200 rounds",
    "memory, file handles, threads and files on disk stay as they are",
)
@pytest.mark.slow
@pytest.mark.long
def test_200_rounds_leave_memory_files_threads_and_disk_as_they_are(data, tmp_path):
    job = make_job(tmp_path, 200)
    sites = settings(data, tmp_path, SITES[:2])
    process, seen = psutil.Process(), []

    class Measuring:
        def __init__(self, channel):
            self._channel = channel

        def ask(self, task, payloads, exchange, answer):
            self._channel.ask(task, payloads, exchange, answer)
            number = next(iter(payloads.values())).facts.get("round", 0)
            if task == "train" and number % 10 == 0:
                gc.collect()
                files = sum(len(names) for _, _, names in os.walk(tmp_path))
                seen.append((number, process.memory_info().rss, process.num_fds(), threading.active_count(), files))

    result = rehearse(job, sites, tmp_path / "out", Measuring(rehearsal_channel(job, sites)))
    assert result.status == "finished" and len(result.rounds) == 200
    rounds, memory, handles, threads, files = (np.array(each) for each in zip(*seen, strict=True))
    later = rounds >= 50  # until then allocators and caches fill
    slope = np.polyfit(rounds[later], memory[later], 1)[0]
    print(f"memory slope {slope / 1024:.1f} KiB a round; handles {set(handles[later])}; files {set(files[later])}")
    assert slope < 64 * 1024, "an update is ten times smaller, but the result grows by a few KiB a round"
    assert np.ptp(handles[later]) <= 2 and np.ptp(threads[later]) == 0 and np.ptp(files[later]) == 0


class Around:
    """A channel that does something before a site's work in one round, and something after it."""

    def __init__(self, channel, number, before, after=lambda: None):
        self._channel, self._number, self._before, self._after = channel, number, before, after

    def ask(self, task, payloads, exchange, answer):
        if (task, next(iter(payloads.values())).facts.get("round")) == ("train", self._number):
            ordered = sorted(payloads)
            self._channel.ask(task, {site: payloads[site] for site in ordered[:1]}, Kept(exchange), answer)
            self._before()
            try:
                self._channel.ask(task, {site: payloads[site] for site in ordered[1:]}, exchange, answer)
            finally:
                self._after()
        else:
            self._channel.ask(task, payloads, exchange, answer)


class Kept:
    """An exchange that is not closed yet."""

    def __init__(self, exchange):
        self.is_over, self.receive, self.close = exchange.is_over, exchange.receive, lambda: None


def run_with_trouble(data, folder, before, after=lambda: None, changes=None, **sections):
    """Two sites, trouble at the second one in round 2."""
    job = load_job(
        write_job(
            folder / "job.yaml",
            **{
                "training": {"steps_per_round": 1, "precision": "fp32", **sections.get("training", {})},
                "network": {"channels": [2, 4], **sections.get("network", {})},
                "federation": {"rounds": 3, "min_sites": 1},
                "data": sections.get("data", {}),
            },
        )
    )
    sites = settings(data, folder, SITES[:2])
    sites["site-2"] = sites["site-2"].model_copy(update=changes or {})
    channel = Around(rehearsal_channel(job, sites), 2, before, after)
    return rehearse(job, sites, folder / "out", channel)


@pytest.mark.promise(
    "site: memory of a training used up",
    "that site's round is lost, with its kind and what to do; its client stays",
)
@pytest.mark.slow
@pytest.mark.long
def test_a_training_that_runs_out_of_memory_costs_that_site_that_round_only(data, tmp_path):
    """The process's address space is limited for real while the second site trains."""
    _, most = resource.getrlimit(resource.RLIMIT_AS)

    def limit():
        resource.setrlimit(resource.RLIMIT_AS, (psutil.Process().memory_info().vms, most))

    result = run_with_trouble(
        data,
        tmp_path,
        limit,
        lambda: resource.setrlimit(resource.RLIMIT_AS, (most, most)),
        network={"channels": [16, 4]},
        training={"batch_size": 1200},  # one layer's output is 157 MB, more than the C library keeps of freed memory
    )
    assert result.status == "finished" and set(result.rounds[1].left_out) == {"site-2"}
    assert "ran out of memory - set memory_budget_gib in its site.yaml" in result.rounds[1].left_out["site-2"]
    assert result.rounds[2].left_out == {}


@pytest.fixture
def disk(tmp_path):
    """A disk of one megabyte."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if os.geteuid() or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder]).returncode:
        pytest.skip("only root can mount a small disk, and not everywhere")
    yield folder
    subprocess.run(["umount", folder], check=True)


def fill(disk):
    with suppress(OSError), (disk / "filler").open("wb") as stream:
        stream.write(bytes(2**21))


def remount(disk, mode):
    subprocess.run(["mount", "-o", f"remount,{mode}", disk], check=True)


@pytest.mark.promise(
    "site: disk full, folder not writable",
    "that site's round is lost, with its kind; it trains on as soon as it can write",
)
@pytest.mark.parametrize(
    ("break_it", "mend_it"),
    [
        (fill, lambda disk: (disk / "filler").unlink()),
        (lambda disk: remount(disk, "ro"), lambda disk: remount(disk, "rw")),
    ],
    ids=["full", "read-only"],
)
def test_a_disk_that_cannot_be_written_costs_that_site_that_round_only(data, tmp_path, disk, break_it, mend_it):
    (tmp_path / "run").mkdir()
    changes = {"state": disk / "state"}
    result = run_with_trouble(data, tmp_path / "run", lambda: break_it(disk), lambda: mend_it(disk), changes=changes)
    assert result.status == "finished" and "cannot read or write a file" in result.rounds[1].left_out["site-2"]
    assert result.rounds[2].left_out == {}


@pytest.mark.promise(
    "server: disk full",
    "the job ends with one sentence; its last checkpoint stays whole, `fedspleen simulate --resume` goes on from it",
)
def test_a_full_disk_at_the_server_ends_the_job_and_loses_no_finished_round(data, tmp_path, disk):
    job = make_job(tmp_path, 3)
    whole = rehearse(job, settings(data, tmp_path / "whole"), tmp_path / "whole" / "out")
    sites = settings(data, tmp_path)
    channel = Around(rehearsal_channel(job, sites), 2, lambda: fill(disk))
    with pytest.raises(FederationError, match="No space left on device - what the last checkpoint holds is not lost"):
        rehearse(job, sites, disk / "out", channel)
    (disk / "filler").unlink()
    result = rehearse(job, sites, disk / "out")
    assert [each.after_round for each in result.restarts] == [1] and result.restarts[0].damaged == []
    assert [done.dice for done in result.rounds] == [done.dice for done in whole.rounds]
    assert result.final == whole.final


@pytest.mark.promise("site: disk full, folder not writable")
def test_an_output_folder_that_cannot_be_written_is_named_by_its_kind(data, tmp_path):
    blocked = tmp_path / "a file"
    blocked.write_text("no folder")
    result = run_with_trouble(data, tmp_path, lambda: None, changes={"output": blocked / "output"})
    # its audit trail goes there, from the first task on
    assert set(result.refused) == {"site-2"} and "cannot read or write a file" in result.refused["site-2"]
    assert any("without site-2" in caveat for caveat in result.caveats)


@pytest.mark.promise(
    "site: files truncated or removed during training",
    "prepared cases are in memory; what reads a file again fails at that site only",
)
@pytest.mark.parametrize(
    "lose", [lambda path: path.write_bytes(path.read_bytes()[:100]), Path.unlink], ids=["truncated", "removed"]
)
def test_a_file_that_is_lost_during_training_is_that_sites_trouble_only(tmp_path, lose):
    own = write_sites(tmp_path / "data", site_1=4, site_2=4)

    def lose_all():
        for path in (own / "site-2").rglob("*.nii.gz"):
            lose(path)

    result = run_with_trouble(own, tmp_path, lose_all)
    assert result.status == "finished" and result.rounds[1].left_out == {}, "prepared cases are in memory"
    assert set(result.final.left_out) <= {"site-2"} and set(result.final.sites) >= {"site-1"}


class Answering:
    """A channel whose sites answer well, or not at all."""

    def __init__(self):
        self.answers = True

    def ask(self, task, payloads, exchange, answer):
        for site in payloads if self.answers else ():
            exchange.receive(site, lambda site=site: answer(site, {}, {}))
        exchange.close()


@pytest.mark.promise("site: its process of the job killed or crashed")
def test_a_site_whose_process_ends_again_and_again_is_given_up_and_told_so(tmp_path):
    job, channel = make_job(tmp_path, 1), Answering()
    sites = Participants(channel, job.federation, Record(tmp_path / "result.json", job), dict)
    sites.started("site-1")
    sites.ask("train", {"site-1": Payload()}, lambda *_: None)
    channel.answers = False
    for _ in range(4):
        assert not sites.gave_up("site-1")
        sites.started("site-1")
    assert sites.gave_up("site-1")
    exchange = sites.ask("train", {"site-1": Payload()}, lambda *_: None)
    assert "its process ended in the middle of its work" in exchange.left_out["site-1"]


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def make_exchange(**options):
    clock = Clock()
    return clock, Exchange(SITES, clock=clock, **{"quorum": 2, "time_limit": 600, "grace": 300, **options})


@pytest.mark.promise(
    "site: silent",
    "not waited for once `min_sites` have answered; until then, up to the round's time limit",
)
def test_a_silent_site_is_not_waited_for_once_the_quorum_has_answered():
    clock, exchange = make_exchange()
    for site in SITES:
        exchange.heard(site)
    clock.now = 5
    for site in SITES[:2]:
        exchange.receive(site, lambda: None)
    assert not exchange.is_over()
    clock.now = 21  # a thirtieth of 600 s is 20 s
    assert exchange.is_over()
    exchange.close()
    assert "connection was lost" in exchange.left_out["site-3"] and exchange.unanswered == ["site-3"]


def test_a_slow_site_that_gives_signs_has_the_whole_grace_time():
    clock, exchange = make_exchange()
    for site in SITES[:2]:
        exchange.receive(site, lambda: None)
    for clock.now in range(0, 299, 2):
        exchange.heard("site-3", steps=int(clock.now))
        assert not exchange.is_over()
    clock.now = 301
    assert exchange.is_over()


@pytest.mark.promise("site: silent")
def test_without_a_quorum_silent_sites_are_waited_for_until_the_time_limit():
    clock, exchange = make_exchange()
    for site in SITES:
        exchange.heard(site)
    clock.now = 599
    assert not exchange.is_over()
    exchange.heard("site-1")
    exchange.receive("site-1", lambda: None)
    exchange.heard("site-2")
    assert not exchange.is_over(), "one of two has answered"
    clock.now = 600
    assert exchange.is_over() and not exchange.reached_quorum


def test_a_site_whose_signs_are_slow_is_given_three_times_their_longest_gap():
    clock, exchange = make_exchange()
    for clock.now in (0, 15, 30):
        exchange.heard("site-3")
    clock.now = 70
    assert not exchange.is_silent("site-3")
    clock.now = 76
    assert exchange.is_silent("site-3")


def test_a_site_that_was_gone_and_is_back_is_waited_for_again():
    _, exchange = make_exchange()
    exchange.missing("site-3")
    assert exchange.is_silent("site-3")
    exchange.heard("site-3")
    assert not exchange.is_silent("site-3")


@pytest.mark.promise("site: stalled, but with signs of life")
def test_at_the_time_limit_it_is_told_how_far_a_site_was():
    clock, exchange = make_exchange()
    clock.now = 599
    exchange.heard("site-1", steps=12)
    clock.now = 601
    exchange.close()
    assert "600 s (federation.round_time_limit_s); it had done 12 steps" in exchange.left_out["site-1"]
    assert exchange.left_out["site-2"].endswith("(federation.round_time_limit_s)")
