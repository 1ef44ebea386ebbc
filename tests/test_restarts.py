"""A server and two sites with real processes, killed and started again in the middle of a job."""

import os
import random
import time

import pytest
import torch

from fl_app.config_file import load_job
from fl_app.model_file import load_model
from fl_app.rehearsal import rehearse
from fl_app.result import read_result
from fl_app.site import SiteSettings
from tests.federation import fedspleen, processes_about, write_job
from tests.real_sites import LIMIT, Consortium
from tests.test_sites import LEAD, SITES

pytestmark = [pytest.mark.slow, pytest.mark.long, pytest.mark.timeout(3600)]
ROUNDS = 14
KILLS = 5


@pytest.fixture(scope="module")
def consortium(tmp_path_factory):
    made = Consortium(tmp_path_factory.mktemp("restarts"))
    made.start("server")
    made.ready("server")
    for name in SITES:
        made.start(name)
    for name in SITES:
        made.ready(name)
    yield made
    for each in (*made.submitted, *made.started.values()):
        each.end()
    made.relay.close()
    assert processes_about(made.folder) == []


def make_job(folder, name="job", **federation):
    return write_job(
        folder / f"{name}.yaml",
        training={"steps_per_round": 25, "precision": "fp32"},
        network={"channels": [4, 8], "normalisation": "batch"},
        federation={"rounds": ROUNDS, "normalisation": "local", "round_time_limit_s": 300, **federation},
    )


@pytest.fixture(scope="module")
def job(consortium):
    # changes of the model both ways: whoever lost the model before needs it whole
    return make_job(consortium.folder, transfer_bits=3)


@pytest.fixture(scope="module")
def undisturbed(consortium, job):
    """The same job without FLARE and without faults."""
    torch.set_num_threads(1)
    data = consortium.folder / "data"
    sites = {site: SiteSettings(data=data / site, threads=1, device="cpu") for site in SITES}
    rehearse(load_job(job), sites, consortium.folder / "undisturbed")
    return consortium.folder / "undisturbed"


def assert_same_models(one, other):
    for name in ("best", "last"):
        (here, info), (there, other_info) = (
            load_model(folder / "model" / f"{name}.safetensors") for folder in (one, other)
        )
        assert info.round == other_info.round
        assert all(torch.equal(value, there[key]) for key, value in here.items())


@pytest.mark.promise(
    "server: power loss, `kill -9`",
    "started again, it takes up each job by itself after the last finished round, once its sites are back, "
    "and comes to the same weights; `result.restarts` tells",
)
@pytest.mark.promise(
    "server: the job's process killed (no memory)",
    "the job goes on likewise, without a new start; if it had come no further than the last time, the job ends",
)
@pytest.mark.promise(
    "site: power loss, `kill -9`",
    "others go on if they are enough; started again, it gets the running job, prepares itself, restores "
    "its optimiser and own layers from `state/` in its kit's folder; `result.returns` tells",
)
@pytest.mark.promise(
    "site: its process of the job killed or crashed",
    "it gets the job again, without a new start; after 4 without a good answer it is left out for the rest of the job",
)
def test_a_job_survives_the_end_of_a_site_of_its_process_and_of_the_server(consortium, job, undisturbed, tally):
    """All sites are needed, so every round waits for who was killed; the model is that of a run without faults."""
    out = consortium.folder / "disturbed"
    running = consortium.submit(job, out)
    job_id = consortium.identify(running)

    consortium.wait_for_round(job_id, 2)
    assert consortium.kill_job("site-1", job_id)
    seconds = {"a site's process": consortium.wait_for_round(job_id, 3)}

    consortium.kill("site-2")
    consortium.start("site-2")
    consortium.ready("site-2")
    seconds["a site"] = consortium.wait_for_round(job_id, 4)

    consortium.kill("server")
    consortium.start("server")
    consortium.ready("server")
    seconds["the server"] = consortium.wait_for_round(job_id, 5)

    assert consortium.kill_job("server", job_id)
    seconds["the server's process"] = consortium.wait_for_round(job_id, 6)
    print(f"seconds until the job went on after the end of {seconds}")

    running.wait_for("Held-out test cases", LIMIT)
    assert running.process.wait(LIMIT) == 0
    result = read_result(out / "result.json")
    assert [restart.lost_state for restart in result.restarts] == [[], []]
    assert [(each.site, each.restored) for each in result.returns] == [("site-1", True), ("site-2", True)]
    assert [each.number for each in result.rounds] == list(range(1, ROUNDS + 1))
    assert all(set(each.sites) == set(SITES) and not each.left_out for each in result.rounds)
    assert_same_models(out, undisturbed)
    assert result.final == read_result(undisturbed / "result.json").final
    tally.add([f"{name} killed" for name in ("site-1's job", "site-2", "server", "server's job")])
    assert not consortium.results(job_id).exists(), "packed and removed"
    states = [consortium.kits / site / "state" / job_id for site in SITES]
    assert not any(each.exists() for each in states), "of no use after the end; those of aborted jobs stay for 30 days"


@pytest.mark.promise(
    "line: cut, or stalled without closing, both ways or one",
    "sites and server find each other again; a round's answer is sent until it has arrived",
)
@pytest.mark.promise(
    "line: slow, or a slow site",
    "has the grace time, and until the quorum has answered the whole round's",
)
@pytest.mark.promise(
    "line: server away while `follow` or `submit` waits",
    "they wait, by default 10 minutes (`--patience`), and go on",
)
@pytest.mark.promise(
    "run: two jobs at once",
    "run beside each other; files and results are apart",
)
def test_two_jobs_at_once_survive_a_line_that_is_cut_stalled_and_slow(consortium, job, undisturbed, tally):
    """Everything that is sent goes through a relay; both jobs end with the model of a run without faults."""
    outs = [consortium.folder / name for name in ("first", "second")]
    running = [consortium.submit(job, out) for out in outs]
    jobs = [consortium.identify(each) for each in running]
    for job_id in jobs:
        consortium.wait_for_round(job_id, 2)
    relay = consortium.relay
    relay.cut()
    time.sleep(5)
    relay.mend()
    seconds = {"cut for 5 s": max(consortium.wait_for_more(job_id) for job_id in jobs)}
    relay.stall()
    time.sleep(20)
    relay.mend()
    seconds["stalled for 20 s"] = max(consortium.wait_for_more(job_id) for job_id in jobs)
    relay.stall("to the sites")
    time.sleep(20)
    relay.mend()
    seconds["stalled in one way for 20 s"] = max(consortium.wait_for_more(job_id) for job_id in jobs)
    relay.delay = 0.05
    print(f"seconds until the next round after the line was {seconds}")
    for each, out in zip(running, outs, strict=True):
        each.wait_for("Held-out test cases", LIMIT)
        result = read_result(out / "result.json")
        assert result.status == "finished" and not any(done.left_out for done in result.rounds)
        assert_same_models(out, undisturbed)
    relay.mend()
    tally.add(["line cut", "line stalled", "line stalled one way", "line slow"], finished=2)


@pytest.mark.promise("server: power loss, `kill -9`")
@pytest.mark.promise("server: the job's process killed (no memory)")
@pytest.mark.promise("site: power loss, `kill -9`")
@pytest.mark.promise("site: its process of the job killed or crashed")
def test_whoever_is_killed_whenever_the_model_is_that_of_a_run_without_faults(consortium, job, undisturbed, tally):
    """Chance decides who, alone or with somebody else, when, and for how long; the seed is printed."""
    seed = int(os.environ.get("FEDSPLEEN_TEST_SEED", time.time_ns()))
    print(f"FEDSPLEEN_TEST_SEED={seed}")
    chance = random.Random(seed)
    out = consortium.folder / f"random-{seed}"
    running = consortium.submit(job, out)
    job_id = consortium.identify(running)
    consortium.wait_for_round(job_id, 1)
    everybody = ["server", *SITES]
    killed = []
    for _ in range(KILLS):
        time.sleep(chance.uniform(0, 10))
        if not consortium.results(job_id).exists():
            break
        chosen = chance.sample([*everybody, *(f"{name}'s job" for name in everybody)], chance.choice([1, 1, 2]))
        whole = [name for name in chosen if name in everybody]
        for name in set(chosen) - set(whole):
            if consortium.kill_job(name.removesuffix("'s job"), job_id):
                killed.append(name)
        for name in whole:
            consortium.kill(name)
            killed.append(name)
        print(f"killed {chosen}")
        time.sleep(chance.uniform(0, 10))
        for name in whole:
            consortium.start(name)
        for name in whole:
            consortium.ready(name)
        consortium.wait_for_more(job_id)
    running.wait_for("Held-out test cases", LIMIT)
    assert running.process.wait(LIMIT) == 0, running.text
    result = read_result(out / "result.json")
    missing = sum(len(set(SITES) ^ done.sites.keys()) for done in result.rounds)
    tally.add([f"{name} killed" for name in killed], lost=missing)
    assert len(killed) >= KILLS // 2
    assert [each.number for each in result.rounds] == list(range(1, ROUNDS + 1)) and not missing
    assert_same_models(out, undisturbed)
    assert result.final == read_result(undisturbed / "result.json").final


@pytest.mark.promise("site: power loss, `kill -9`")
@pytest.mark.promise(
    "site: away for some rounds",
    "each round and the run's caveats name it; it comes back without ceremony, also while networks are "
    "searched, derived or trained",
)
@pytest.mark.promise(
    "server: stopped (SIGTERM, `server stop`)",
    "a stop is a pause: started again, it takes up each job; `fedspleen abort` ends one",
)
def test_a_site_that_was_killed_is_left_out_at_once_and_comes_back(consortium):
    """One of two sites is enough, and the grace time is long: a silent site is not waited for."""
    job = make_job(consortium.folder, "quorum", min_sites=1, grace_s=250, rounds=1000)
    running = consortium.submit(job, consortium.folder / "quorum")
    job_id = consortium.identify(running)
    consortium.wait_for_round(job_id, 2)
    consortium.kill("site-2")
    seconds = consortium.wait_for_more(job_id, rounds=2)
    result = read_result(consortium.results(job_id))
    missed = [done.left_out for done in result.rounds if done.left_out]
    assert all("its connection was lost" in each["site-2"] for each in missed) and missed
    consortium.start("site-2")
    consortium.ready("site-2")
    print(f"two rounds further {seconds:.0f} s after a site was killed")
    end = time.monotonic() + LIMIT
    while not (returns := read_result(consortium.results(job_id)).returns):
        assert time.monotonic() < end, "it has not come back"
        time.sleep(0.2)
    assert [(each.site, each.restored) for each in returns] == [("site-2", True)]
    consortium.started["server"].end()  # an orderly stop pauses the job, too
    consortium.start("server")
    consortium.ready("server")
    done = fedspleen("abort", job_id, "--kit", consortium.kits / LEAD, cwd=consortium.folder)
    assert done.returncode == 0, done.stderr
    assert running.process.wait(LIMIT) == 1 and "the job was" in running.text
    assert len(read_result(consortium.folder / "quorum" / "result.json").rounds) >= 4
