"""The workflow and the sites' work without FLARE: fast enough to end a job after every round and go on."""

import csv
import json

import pytest
import torch

from fl_app.baselines import train_baseline
from fl_app.config_file import load_job
from fl_app.errors import FederationError
from fl_app.ledger import TRAIL, verify_ledger
from fl_app.model_file import load_model
from fl_app.networks.registry import build_network
from fl_app.rehearsal import rehearsal_channel, rehearse
from fl_app.result import read_result
from fl_app.site import SiteSettings
from fl_app.training.reporting import case_file
from tests.federation import write_job, write_sites

ROUNDS = 3


class Killed(Exception):
    """Stands for the end of the server's process."""


class Ending:
    """A channel that breaks down when a task is sent, or after its answers have come."""

    def __init__(self, channel, task, number, before):
        self._channel, self._end, self._before = channel, (task, number), before

    def ask(self, task, payloads, exchange, answer):
        number = next(iter(payloads.values())).facts.get("round", 0)
        if self._before and (task, number) == self._end:
            raise Killed
        self._channel.ask(task, payloads, exchange, answer)
        if (task, number) == self._end:
            raise Killed


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_sites(tmp_path_factory.mktemp("data"), site_1=4, site_2=5)


@pytest.fixture
def job(tmp_path):
    return load_job(
        write_job(
            tmp_path / "job.yaml",
            training={"steps_per_round": 1, "precision": "fp32"},
            network={"channels": [2, 4], "normalisation": "batch"},
            federation={"rounds": ROUNDS, "normalisation": "local"},
        )
    )


def settings(data, folder):
    return {
        site: SiteSettings(
            data=data / site, threads=1, cache=data / "cache", state=folder / site / "state", output=folder / site
        )
        for site in ("site-1", "site-2")
    }


def models(folder):
    return {name: load_model(folder / "model" / f"{name}.safetensors") for name in ("best", "last")}


def assert_same(one, other):
    for name, (values, info) in one.items():
        assert info.round == other[name][1].round
        assert all(torch.equal(value, other[name][0][key]) for key, value in values.items())


ENDS = [
    ("prepare", 0, False),
    *[("train", number, before) for number, before in ((1, False), (2, True), (2, False), (3, True))],
    ("validate", ROUNDS, False),
    ("test", None, True),
]


@pytest.mark.promise("server: power loss, `kill -9`")
def test_a_job_that_is_ended_anywhere_goes_on_to_the_same_weights(data, job, tmp_path):
    whole = rehearse(job, settings(data, tmp_path / "whole"), tmp_path / "whole" / "out")
    best = whole.final.round
    for number, (task, round_number, before) in enumerate(ENDS):
        folder = tmp_path / f"ended-{number}"
        sites = settings(data, folder)
        end = Ending(rehearsal_channel(job, sites), task, best if task == "test" else round_number, before)
        with pytest.raises(Killed):
            rehearse(job, sites, folder / "out", end)
        # other processes: nothing is left in memory
        again = rehearse(job, sites, folder / "out")
        assert_same(models(folder / "out"), models(tmp_path / "whole" / "out"))
        assert [each.dice for each in again.rounds] == [each.dice for each in whole.rounds]
        assert again.final.mean_dice == whole.final.mean_dice
        finished = ROUNDS if task in ("validate", "test") else max(0, (round_number or 0) - 1)
        assert [restart.after_round for restart in again.restarts] == ([finished] if finished else [])
        assert not any(restart.lost_state for restart in again.restarts)


@pytest.mark.promise(
    "server: a checkpoint damaged",
    "noticed by its SHA-256; the one before it is used, and `result.restarts` says so",
)
def test_a_damaged_checkpoint_is_told_and_the_one_before_it_used(data, job, tmp_path):
    whole = rehearse(job, settings(data, tmp_path / "whole"), tmp_path / "whole" / "out")
    sites = settings(data, tmp_path)
    with pytest.raises(Killed):
        rehearse(job, sites, tmp_path / "out", Ending(rehearsal_channel(job, sites), "train", 3, True))
    newest = max((tmp_path / "out" / "checkpoints").iterdir())
    content = bytearray(newest.read_bytes())
    content[-1] ^= 1
    newest.write_bytes(content)
    again = rehearse(job, sites, tmp_path / "out")
    assert_same(models(tmp_path / "out"), models(tmp_path / "whole" / "out"))
    assert again.restarts[0].after_round == 1 and "damaged" in again.restarts[0].damaged[0]
    assert [each.number for each in again.rounds] == [each.number for each in whole.rounds]


@pytest.mark.promise(
    "site: its own state lost or damaged",
    "it goes on without; `result.restarts` or `returns`, and a caveat, name it",
)
def test_a_site_that_has_lost_its_own_state_is_named(data, job, tmp_path):
    sites = settings(data, tmp_path)
    with pytest.raises(Killed):
        rehearse(job, sites, tmp_path / "out", Ending(rehearsal_channel(job, sites), "train", 2, False))
    for path in (tmp_path / "site-2" / "state").rglob("*.pt"):
        path.write_bytes(path.read_bytes()[:100])
    assert rehearse(job, sites, tmp_path / "out").restarts[0].lost_state == ["site-2"]


def test_a_checkpoint_of_another_job_is_refused(data, job, tmp_path):
    sites = settings(data, tmp_path)
    with pytest.raises(Killed):
        rehearse(job, sites, tmp_path / "out", Ending(rehearsal_channel(job, sites), "train", 2, True))
    other = job.model_copy(update={"seed": 7})
    with pytest.raises(FederationError, match="other settings"):
        rehearse(other, sites, tmp_path / "out")


def test_after_a_finished_job_no_checkpoint_takes_up_the_disk(data, job, tmp_path):
    rehearse(job, settings(data, tmp_path), tmp_path / "out")
    assert not (tmp_path / "out" / "checkpoints").exists()


def test_what_a_kill_leaves_of_a_checkpoint_is_no_obstacle_at_the_end(data, job, tmp_path):
    sites = settings(data, tmp_path)
    with pytest.raises(Killed):
        rehearse(job, sites, tmp_path / "out", Ending(rehearsal_channel(job, sites), "train", 2, True))
    (tmp_path / "out" / "checkpoints" / ".00000002.safetensors.1.2.tmp").write_bytes(b"half of one")
    assert rehearse(job, sites, tmp_path / "out").status == "finished"
    assert not (tmp_path / "out" / "checkpoints").exists()


class Without:
    """A channel whose second site does not answer in one round."""

    def __init__(self, channel, number):
        self._channel, self._number = channel, number

    def ask(self, task, payloads, exchange, answer):
        if (task, next(iter(payloads.values())).facts.get("round")) == ("train", self._number):
            payloads = {"site-1": payloads["site-1"]}
        self._channel.ask(task, payloads, exchange, answer)


@pytest.mark.promise(
    "round: fewer good answers than the quorum",
    "the job ends with each site's reason; what was reached can be downloaded, a simulation goes on with `--resume`",
)
def test_a_job_that_ended_below_its_quorum_goes_on_to_the_same_weights(data, job, tmp_path):
    rehearse(job, settings(data, tmp_path / "whole"), tmp_path / "whole" / "out")
    sites = settings(data, tmp_path)
    with pytest.raises(FederationError, match=r"1 of 2 sites could take part in round 2, 2 are needed .*site-2: it "):
        rehearse(job, sites, tmp_path / "out", Without(rehearsal_channel(job, sites), 2))
    told = read_result(tmp_path / "out" / "result.json")
    assert told.status == "failed" and "site-2: it " in told.error
    assert load_model(tmp_path / "out" / "model" / "last.safetensors")[1].round == 1
    rehearse(job, sites, tmp_path / "out")
    assert_same(models(tmp_path / "out"), models(tmp_path / "whole" / "out"))


class Returning:
    """A channel whose second site is another process from some round on: nothing is left in its memory."""

    def __init__(self, job, sites, number):
        self._job, self._sites, self._number = job, sites, number
        self._channel = rehearsal_channel(job, sites)

    def ask(self, task, payloads, exchange, answer):
        if (task, next(iter(payloads.values())).facts.get("round")) == ("train", self._number):
            self._channel = rehearsal_channel(self._job, self._sites)
        self._channel.ask(task, payloads, exchange, answer)


@pytest.mark.promise("site: power loss, `kill -9`")
def test_sites_that_are_started_anew_go_on_from_their_own_state_to_the_same_weights(data, job, tmp_path):
    rehearse(job, settings(data, tmp_path / "whole"), tmp_path / "whole" / "out")
    sites = settings(data, tmp_path)
    result = rehearse(job, sites, tmp_path / "out", Returning(job, sites, 2))
    assert_same(models(tmp_path / "out"), models(tmp_path / "whole" / "out"))
    told = [(each.site, each.round, each.restored) for each in result.returns]
    assert told == [("site-1", 2, True), ("site-2", 2, True)] and result.caveats == []


def test_both_sides_trails_tell_the_same_of_what_travelled(data, job, tmp_path):
    sites = settings(data, tmp_path)
    rehearse(job, sites, tmp_path / "out")
    trails = {"server": tmp_path / "out" / TRAIL} | {site: each.output / TRAIL for site, each in sites.items()}
    lines = {name: [json.loads(line) for line in path.read_text().splitlines()] for name, path in trails.items()}
    assert not any(verify_ledger(path).problem for path in trails.values())
    for site in sites:
        came = [
            each["sha256_of_values"] for each in lines[site] if "sha256_of_values" in each and each["event"] == "sent"
        ]
        taken = [each for each in lines["server"] if each.get("site") == site and "sha256_of_values" in each]
        assert [each["sha256_of_values"] for each in taken] == came and len(came) == ROUNDS
        assert {each["event"] for each in taken} == {"accepted"}
    text = "".join(path.read_text() for path in trails.values())
    assert "secretpatient" not in text and str(data) not in text


def test_local_normalisation_stays_at_the_sites(data, job, tmp_path):
    """FedBN with FedProx: the normalisation layers' weights and statistics never leave a site."""
    federation = job.federation.model_copy(update={"algorithm": "fedprox"})
    result = rehearse(job.model_copy(update={"federation": federation}), settings(data, tmp_path), tmp_path / "out")
    weights, info = models(tmp_path / "out")["last"]
    start = build_network(info.job).state_dict()
    stayed = {name for name in weights if torch.equal(weights[name], start[name])}
    assert any("running_mean" in name for name in stayed) and any(".N." in name for name in stayed)
    moved = [weights[name] for name in weights if name not in stayed]
    assert result.exchanged_bytes == sum(4 * value.numel() for value in moved)
    assert result.final.mean_dice is not None


def test_a_baseline_writes_the_scores_of_a_sites_cases_where_it_is_asked_to(data, job, tmp_path):
    sites = settings(data, tmp_path)
    path = case_file(tmp_path / "cases", "local")
    baseline = train_baseline(job, ["site-1"], sites, 1, case_files={"site-1": path})
    with path.open(newline="") as stream:
        found = [float(row["dice"]) for row in csv.DictReader(stream)]
    assert len(found) == baseline.sites["site-1"].cases
    assert sum(found) / len(found) == pytest.approx(baseline.sites["site-1"].dice, abs=1e-6)
