"""Many faults at random moments, fast: the workflow and the sites' work over a channel that drops, repeats, corrupts."""

import gc
import os
import threading

import numpy as np
import psutil
import pytest
import torch

from fl_app.config_file import load_job
from fl_app.model_file import load_model
from fl_app.networks import build_network
from fl_app.rehearsal import rehearsal_channel, rehearse
from fl_app.site import SiteSettings
from server.exchange import Exchange
from tests.faults import FAULTS, FaultyChannel
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


def test_random_faults_lose_nothing_count_nothing_twice_and_are_all_written_down(data, tmp_path):
    """The model is what the accepted updates make, recomputed here by other means; every fault has its reason."""
    faults = 0
    for seed in range(4):
        folder = tmp_path / str(seed)
        folder.mkdir()
        job = make_job(folder, 4, min_sites=1)
        sites = settings(data, folder)
        channel = FaultyChannel(rehearsal_channel(job, sites), seed)
        result = rehearse(job, sites, folder / "out", channel)
        faults += len(channel.injected)
        assert result.status == "finished" and [each.number for each in result.rounds] == [1, 2, 3, 4]
        model = {name: value.double() for name, value in build_network(job.network, 1, job.seed).state_dict().items()}
        for done in result.rounds:
            taken = channel.counted[done.number]
            trained = {site for site, each in done.sites.items() if each.steps}
            assert trained == set(taken) and trained | set(done.left_out) == set(SITES)
            assert trained & set(done.left_out) == set() and all(done.left_out.values())
            bad = {site for number, site, fault in channel.injected if number == done.number and fault != "repeat"}
            assert set(done.left_out) == bad
            total = sum(cases for _, cases in taken.values())
            for name in next(iter(taken.values()))[0]:
                model[name] += sum(values[name].double() * cases for values, cases in taken.values()) / total
        last, _ = load_model(folder / "out" / "model" / "last.safetensors")
        for name, value in last.items():
            assert torch.allclose(value.double(), model[name].to(value.dtype).double(), atol=1e-5), name
        assert any("went without some site" in caveat for caveat in result.caveats)
    print(f"{faults} faults in 4 runs, 0 results lost")
    assert faults >= 10 and len(FAULTS) == 7


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


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def make_exchange(**options):
    clock = Clock()
    return clock, Exchange(SITES, clock=clock, **{"quorum": 2, "time_limit": 600, "grace": 300, **options})


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
    clock, exchange = make_exchange()
    exchange.missing("site-3")
    assert exchange.is_silent("site-3")
    exchange.heard("site-3")
    assert not exchange.is_silent("site-3")


def test_at_the_time_limit_it_is_told_how_far_a_site_was():
    clock, exchange = make_exchange()
    clock.now = 599
    exchange.heard("site-1", steps=12)
    clock.now = 601
    exchange.close()
    assert "600 s (federation.round_time_limit_s); it had done 12 steps" in exchange.left_out["site-1"]
    assert exchange.left_out["site-2"].endswith("(federation.round_time_limit_s)")
