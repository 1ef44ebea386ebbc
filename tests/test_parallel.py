"""Several processes take the steps that one would take, and none is left behind or waited for."""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import psutil
import pytest
import torch

from clients.failures import classify
from fl_app.config import Job
from fl_app.config_file import load_job
from fl_app.data.cases import find_cases
from fl_app.data.preparation import prepare_cases
from fl_app.data.sampling import PatchSampler
from fl_app.errors import ConfigError, DataError, ProcessError, TrainingError
from fl_app.networks.widths import Width
from fl_app.rehearsal import rehearse
from fl_app.site import SiteSettings, read_site
from fl_app.training.device import choose_devices
from fl_app.training.leader import Leader, gather_team
from fl_app.training.parallel import Alone
from fl_app.training.trainer import Trainer, ready_network
from tests.architectures import random_architecture
from tests.federation import write_job, write_sites
from tests.test_house import ROOT
from tests.volumes import SPACING_MM, write_decathlon

CPU = torch.device("cpu")
ROUNDS = 4


@pytest.fixture(autouse=True)
def _as_before():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.use_deterministic_algorithms(False)
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("site")


@pytest.fixture(scope="module")
def cases(folder):
    return prepare_cases(find_cases(write_decathlon(folder / "data")).cases, job().data, folder / "cache")


@pytest.fixture(scope="module")
def two(folder, cases):
    """A leader; its follower is started by the first training, and by the next one if it has ended."""
    leader = Leader([CPU, CPU], folder / "cache")
    yield leader
    leader.end()


def job(network=None, federation=None, patch=16, search="none", **training):
    usual = {"batch_size": 3, "precision": "fp32", "deterministic": True, "learning_rate": 0.01, "gradient_clip": 0.5}
    return Job.model_validate(
        {
            "data": {"spacing_mm": SPACING_MM, "patch_voxels": (patch, patch, patch)},
            "network": network or {"channels": (4, 8), "residual_units": 1},
            "training": usual | training,
            "federation": federation or {},
            "search": {"strategy": search},
        }
    )


def trained(wanted, cases, team, pulled=False):
    """Each step's loss, and the trainer: a step is a round of its own, told to the others anew."""
    trainer = Trainer(wanted, cases, CPU, "site-1")
    trainer.team = team
    pull = (0.5, {name: torch.zeros_like(value) for name, value in trainer.all_values().items()}) if pulled else None
    return [trainer.train(number, 1, ROUNDS, pull).loss for number in range(1, ROUNDS + 1)], trainer


def gone(pid, seconds=5.0):
    """Whether a process ends within some seconds."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
            return True
        time.sleep(0.05)
    return False


def test_shares_of_a_batch_make_up_the_batch(cases):
    change = job().training.augmentation.model_copy(update={"noise": 0.1, "flip_probability": (0.5, 0.5, 0.5)})
    sampler = PatchSampler(cases, (8, 8, 8), 0.5, change)
    streams = [np.random.default_rng(1) for _ in range(3)]
    for _ in range(3):
        images, labels = sampler.draw(5, streams[0])
        parts = [
            sampler.draw(5, stream, share) for stream, share in zip(streams[1:], (slice(2), slice(2, 5)), strict=True)
        ]
        assert torch.equal(torch.cat([part[0] for part in parts]), images)
        assert torch.equal(torch.cat([part[1] for part in parts]), labels)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("wanted", "pulled", "tolerance"),
    [
        pytest.param(job(optimizer="sgd"), True, 1e-4, id="SGD, Ditto's pull"),
        pytest.param(
            job(federation={"algorithm": "fedprox", "proximal_mu": 0.5}, optimizer="sgd"), False, 1e-4, id="FedProx"
        ),
        pytest.param(job(), False, 1e-4, id="Novograd"),
        pytest.param(job(recompute=True), False, 1e-4, id="computing again"),
        pytest.param(job(loss="dice_focal", optimizer="adam", batch_size=2), False, 1e-3, id="Adam, MONAI's loss"),
    ],
)
def test_two_processes_take_the_steps_of_one(wanted, pulled, tolerance, cases, two):
    losses, alone = trained(wanted, cases, Alone(), pulled)
    shared_losses, shared = trained(wanted, cases, two, pulled)
    assert len(two.followers) == 1 and losses[0] != losses[-1]
    assert shared_losses == pytest.approx(losses, rel=1e-5)
    values = shared.all_values()
    for name, value in alone.all_values().items():
        # instance normalisation takes a bias before it away: its gradient is rounding, which Adam and Novograd scale up
        if wanted.training.optimizer == "sgd" or not name.endswith("conv.bias"):
            torch.testing.assert_close(values[name], value, rtol=tolerance, atol=tolerance)
    again_losses, again = trained(wanted, cases, two, pulled)
    assert again_losses == shared_losses and again.holds(values)


@pytest.mark.slow
def test_several_processes_update_all_weights_together(cases, two):
    """Their gradients are averaged first: `early_update` is without effect."""
    losses, plain = trained(job(), cases, two)
    early_losses, early = trained(job(early_update=True), cases, two)
    assert early_losses == losses and early.holds(plain.all_values())


SEARCHED = random_architecture(Job().search.space, 1).to_json()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("wanted", "architecture"),
    [
        pytest.param(job(patch=32, search="sampling"), SEARCHED, id="a network of cells"),
        pytest.param(job(search="width"), Width(4).to_json(), id="half of the network's width"),
        pytest.param(job(network={"name": "unetr", "size": "small"}), "", id="UNETR, which has parameters without use"),
    ],
)
def test_two_processes_train_other_networks_alike(wanted, architecture, cases, two):
    losses = []
    for team in (Alone(), two):
        trainer = Trainer(wanted, cases, CPU, "site-1", ready_network(wanted, CPU, architecture))
        trainer.team = team
        losses.append(trainer.train(1, 3, 1).loss)
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)


@pytest.mark.slow
def test_two_processes_train_alike_in_the_usual_precision(cases, two):
    wanted = job(precision="auto", deterministic=False, gradient_clip=12.0)
    losses, _ = trained(wanted, cases, Alone())
    assert trained(wanted, cases, two)[0] == pytest.approx(losses, rel=0.02)


@pytest.mark.slow
def test_a_loss_that_is_no_number_is_told_once_and_the_processes_stay(cases, two):
    trained(job(), cases, two)
    followers = two.followers
    broken = Trainer(job(), cases, CPU, "site-1")
    broken.team = two
    broken.load({name: torch.full_like(value, torch.nan) for name, value in broken.shared_values().items()})
    with pytest.raises(TrainingError, match="no longer a number"):
        broken.train(1, 2, 1)
    assert trained(job(), cases, two)[0] == pytest.approx(trained(job(), cases, Alone())[0], rel=1e-5)
    assert two.followers == followers


@pytest.mark.promise(
    "site: one of several training processes killed",
    "that site's round ends at once, with a kind of its own and a sentence in the site's log; its next round has new "
    "processes",
)
@pytest.mark.slow
def test_a_process_that_is_killed_ends_the_round_with_a_sentence_and_the_next_round_has_another(cases, two):
    trainer = Trainer(job(), cases, CPU, "site-1")
    trainer.team = two
    trainer.train(1, 1, 2)
    (follower,) = two.followers
    trainer.after_step = lambda: os.kill(follower, signal.SIGKILL)
    started = time.monotonic()
    with pytest.raises(
        ProcessError, match=r"training process 2 of 2 was ended by SIGKILL - .*processes: to less"
    ) as told:
        trainer.train(2, 50, 2)
    assert time.monotonic() - started < 15
    assert classify(told.value).kind == "process"
    assert two.followers == [] and gone(follower)
    trainer.after_step = lambda: None
    assert trainer.train(2, 1, 2).steps == 1
    assert two.followers != [follower]


@pytest.mark.slow
def test_what_another_process_fails_with_is_what_the_site_fails_with(tmp_path, two):
    folder = write_decathlon(tmp_path / "data")
    cases = prepare_cases(find_cases(folder).cases, job().data, None)
    next((folder / "imagesTr").iterdir()).write_bytes(b"no image")
    trainer = Trainer(job(), cases, CPU, "site-1")
    trainer.team = two
    with pytest.raises(DataError) as told:
        trainer.train(1, 1, 1)
    assert classify(told.value).kind == "data" and two.followers == []


_ENDLESS = """
import sys, torch
from pathlib import Path
from fl_app.data.cases import find_cases
from fl_app.data.preparation import prepare_cases
from fl_app.training.leader import Leader
from fl_app.training.trainer import Trainer
from tests.test_parallel import CPU, job
folder = Path(sys.argv[1])
leader = Leader([CPU, CPU], folder / "cache")
trainer = Trainer(job(), prepare_cases(find_cases(folder / "data").cases, job().data, folder / "cache"), CPU, "site-1")
trainer.team = leader
trainer.after_step = lambda: print(*leader.followers, flush=True)
trainer.train(1, 10**6, 1)
"""


@pytest.mark.promise(
    "site: the first of several training processes killed",
    "the others end by themselves; else as any process of the job",
)
@pytest.mark.slow
def test_the_others_end_with_the_first_process(cases, folder):
    command = [sys.executable, "-c", _ENDLESS, str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as first:
        follower = int(first.stdout.readline())
        assert psutil.pid_exists(follower)
        first.kill()
        first.wait()
    assert gone(follower)


@pytest.mark.slow
def test_a_job_goes_on_as_ever_when_a_site_trains_with_two_processes(tmp_path, two):
    two.end()
    data = write_sites(tmp_path / "data", site_1=4, site_2=5)
    wanted = load_job(
        write_job(
            tmp_path / "job.yaml",
            training={"steps_per_round": 2, "precision": "fp32"},
            network={"channels": [2, 4]},
            personal={"ditto": 0.1, "fine_tuning_steps": 2},
            federation={"rounds": 2},
        )
    )
    results = []
    for processes in (1, 2):
        out = tmp_path / str(processes)
        sites = {
            site: SiteSettings(data=data / site, threads=1, cache=tmp_path / "cache", output=out / site)
            for site in ("site-1", "site-2")
        }
        sites["site-2"] = sites["site-2"].model_copy(update={"processes": processes})
        results.append(rehearse(wanted, sites, out / "out"))
    one, shared = results
    assert {name: site.device for name, site in shared.sites.items()} == {"site-1": "cpu", "site-2": "cpu, 2 processes"}
    losses = [[each.sites[site].loss for each in result.rounds for site in each.sites] for result in results]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3) and one.final.mean_dice is not None
    # one that has ended and that nobody has taken leave of, such as another test's, has no command line any more
    commands = [child.as_dict(["cmdline"], ad_value=[])["cmdline"] for child in psutil.Process().children()]
    assert not any("follower" in " ".join(command) for command in commands)


def test_more_processes_than_gpus_are_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    assert choose_devices("cuda:1", 2) == [torch.device("cuda:1"), torch.device("cuda:2")]
    assert choose_devices("cpu", 2) == [CPU, CPU]
    with pytest.raises(ConfigError, match=r"processes: 3 - .* device 'cuda:1' on this machine has 2: set processes: 2"):
        choose_devices("cuda:1", 3)


def test_processes_need_a_cache_to_share():
    with pytest.raises(ConfigError, match=r"processes: 2 - .*cache:"):
        gather_team(job(), [CPU, CPU], None)


@pytest.mark.parametrize(
    ("wanted", "why"),
    [
        (job(batch_size=1), "training.batch_size: 1 - has work for 1 of this site's 2 processes"),
        (job(network={"channels": (4, 8), "normalisation": "batch"}), "network.normalisation: batch needs each batch"),
    ],
)
def test_a_job_that_cannot_use_several_processes_is_trained_by_one(wanted, why, folder, caplog):
    assert gather_team(wanted, [CPU, CPU], folder / "cache").size == 1
    assert why in caplog.text


def test_a_site_that_asks_for_no_process_is_told(tmp_path):
    path = tmp_path / "site.yaml"
    path.write_text("data: folder\nprocesses: 0\n")
    with pytest.raises(ConfigError, match=r"site.yaml:2 processes: 0"):
        read_site(path)
