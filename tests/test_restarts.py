"""A server and two sites with real processes, killed and started again in the middle of a job."""

import os
import signal
import time

import psutil
import pytest
import torch

from fl_app.model_file import load_model
from fl_app.result import read_result
from fl_app.site import SiteSettings, write_site
from tests.federation import fedspleen, processes_about, write_job, write_sites
from tests.test_sites import LEAD, SITES, Running, make_kits

pytestmark = pytest.mark.slow
ROUNDS = 8


class Consortium:
    """Kits, data and what runs with them."""

    def __init__(self, folder):
        self.folder = folder
        self.kits = make_kits(folder / "consortium")
        data = write_sites(folder / "data", site_1=4, site_2=5)
        for site in SITES:
            write_site(self.kits / site / "site.yaml", SiteSettings(data=data / site, threads=1, device="cpu"))
        self.started = {}

    def start(self, name):
        command = ("server", "start") if name == "server" else ("client", "start")
        self.started[name] = Running(*command, self.kits / name, cwd=self.folder)
        return self.started[name]

    def ready(self, name, seconds=60):
        words = "ready at localhost" if name == "server" else f"site {name} registered"
        return self.started[name].wait_for(words, seconds)

    def kill(self, name):
        """Kill -9, everything of it at once, as when the machine loses power."""
        family = psutil.Process(self.started[name].process.pid)
        for each in [family, *family.children(recursive=True)]:
            each.kill()
        self.started[name].process.wait(timeout=10)

    def kill_job(self, name, job_id):
        """Kill -9 the process of a job only."""
        family = psutil.Process(self.started[name].process.pid).children(recursive=True)
        found = [each for each in family if "worker_process" in " ".join(each.cmdline()) and job_id in each.cmdline()]
        assert len(found) == 1
        found[0].kill()

    def submit(self, job):
        done = fedspleen("submit", job, "--kit", self.kits / LEAD, "--detach", cwd=self.folder)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def follow(self, job_id):
        return Running("follow", job_id, "--kit", self.kits / LEAD, cwd=self.folder)

    def download(self, job_id, out):
        done = fedspleen("download", job_id, "--kit", self.kits / LEAD, "--out", out, cwd=self.folder)
        assert done.returncode == 0, done.stderr
        return read_result(out / "result.json")


@pytest.fixture(scope="module")
def consortium(tmp_path_factory):
    made = Consortium(tmp_path_factory.mktemp("restarts"))
    for name in ("server", *SITES):
        made.start(name)
    for name in ("server", *SITES):
        made.ready(name)
    yield made
    for each in made.started.values():
        each.end()
    assert processes_about(made.folder) == []


@pytest.fixture(scope="module")
def job(consortium):
    return write_job(
        consortium.folder / "job.yaml",
        training={"steps_per_round": 10, "precision": "fp32"},
        network={"channels": [4, 8], "normalisation": "batch"},
        federation={"rounds": ROUNDS, "normalisation": "local", "round_time_limit_s": 180},
    )


@pytest.fixture(scope="module")
def undisturbed(consortium, job):
    job_id = consortium.submit(job)
    consortium.follow(job_id).wait_for("has ended: FINISHED:COMPLETED", 120)
    result = consortium.download(job_id, consortium.folder / "undisturbed")
    assert result.restarts == [] and result.caveats == []
    return consortium.folder / "undisturbed"


def assert_same_models(one, other):
    for name in ("best", "last"):
        (here, info), (there, other_info) = (
            load_model(folder / "model" / f"{name}.safetensors") for folder in (one, other)
        )
        assert info.round == other_info.round
        assert all(torch.equal(value, there[key]) for key, value in here.items())


def test_a_job_goes_on_by_itself_after_the_server_was_killed(consortium, job, undisturbed):
    job_id = consortium.submit(job)
    follower = consortium.follow(job_id)
    follower.wait_for(f"round 3/{ROUNDS}", 120)
    consortium.kill("server")
    killed = time.monotonic()
    consortium.start("server")
    consortium.ready("server")
    print(f"server ready after {time.monotonic() - killed:.1f} s")
    follower.wait_for(f"round 5/{ROUNDS}", 120)
    print(f"two rounds further after {time.monotonic() - killed:.1f} s")
    follower.wait_for("has ended: FINISHED:COMPLETED", 120)
    assert "the server is away" in follower.text
    out = consortium.folder / "server-killed"
    result = consortium.download(job_id, out)
    assert len(result.restarts) == 1 and result.restarts[0].lost_state == []
    assert [each.number for each in result.rounds] == list(range(1, ROUNDS + 1))
    assert all(set(each.sites) == set(SITES) for each in result.rounds)
    assert_same_models(out, undisturbed)
    assert result.final == read_result(undisturbed / "result.json").final
    assert not (consortium.kits / "server" / "results" / "server" / job_id).exists()
