"""Faults at moments that nobody has chosen, by the hundred: what a run ends with is checked by other means."""

import os
from itertools import count

import numpy as np
import pytest
import torch

from clients.work import SiteWork
from fl_app.config.search import SearchSettings
from fl_app.config_file import load_job
from fl_app.errors import FederationError
from fl_app.ledger import TRAIL, verify_ledger
from fl_app.messages import PREPARE
from fl_app.model_file import load_model
from fl_app.networks.registry import build_network
from fl_app.rehearsal import rehearse
from fl_app.result import read_result
from fl_app.site import SiteSettings
from tests.faults import Killed, TroubledLine
from tests.federation import write_job, write_sites
from tests.kills import run_and_kill, run_light
from tests.light_sites import LightSite

SEED = int(os.environ.get("FEDSPLEEN_TEST_SEED", "0"))  # another number: other faults
SEARCH = {
    "strategy": "sampling",
    "space": {"blocks": 3, "depths": 2, "channels": 4},
    "supernet_rounds": 2,
    "generations": 2,
    "candidates": 3,
    "rounds": 2,
}


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """A job for sites that take no time."""
    return load_job(
        write_job(
            tmp_path_factory.mktemp("job") / "job.yaml",
            network={"channels": [2, 4]},
            federation={"round_time_limit_s": 30, "grace_s": 5, "transfer_bits": 32},
        )
    )


def varied(job, **federation):
    return job.model_copy(update={"federation": job.federation.model_copy(update=federation)})


def searching(job):
    return job.model_copy(update={"search": SearchSettings.model_validate(SEARCH)})


def run_to_the_end(job, names, folder, line, tally):
    """Start the server again whenever it was killed or gave up; the result, checked against what it accepted."""
    for attempt in count():
        assert attempt < 50, "it never finished"
        if attempt == 10:
            line.share = line.crashes = 0.0  # enough
        try:
            result = rehearse(job, dict.fromkeys(names), folder, line, line.clock)
            break
        except Killed:
            pass
        except FederationError as error:
            assert "federation.min_sites" in str(error) and "site-" in str(error)
    trained = {done.number: {site for site, each in done.sites.items() if each.steps} for done in result.rounds}
    taken = {number: set(line.counted["main", number]) for number in trained}
    lost = sum(len(taken[number] ^ trained[number]) for number in trained)
    tally.add((fault for *_, fault in line.injected), lost=lost, wait=line.longest)
    assert result.status == "finished" and list(trained) == list(range(1, job.federation.rounds + 1)) and not lost
    assert line.longest < 1e-6
    # who could not prepare itself takes no part
    unprepared = {site for task, _, site, _ in line.injected if task == PREPARE}
    for done in result.rounds:
        here, away = trained[done.number], set(done.left_out)
        assert set(names) - unprepared <= here | away <= set(names) and not here & away and all(done.left_out.values())
    assert not verify_ledger(folder / TRAIL).problem
    return result


def assert_made_of_what_was_accepted(job, folder, line):
    """The last model, recomputed by other means."""
    model = {name: value.double() for name, value in build_network(job).state_dict().items()}
    for number in range(1, job.federation.rounds + 1):
        taken = line.counted["main", number].values()
        for name in next(iter(taken))[0]:
            update = sum(values[name].double() * cases for values, cases in taken)
            model[name] += update / sum(cases for _, cases in taken)
    last, _ = load_model(folder / "model" / "last.safetensors")
    for name, value in last.items():
        assert torch.allclose(value.double(), model[name].to(value.dtype).double(), atol=1e-5), name


def schedules(seed, number, job, folder):
    """Federations of two to five sites with any quorum; on a line that fails as chance decides."""
    for place in range(number):
        chance = np.random.default_rng((SEED, seed, place))
        names = [f"site-{each + 1}" for each in range(int(chance.integers(2, 6)))]
        federation = {"rounds": int(chance.integers(1, 4)), "min_sites": int(chance.integers(1, len(names) + 1))}
        one = varied(job, **federation)
        line = TroubledLine(lambda site, one=one: LightSite(one, site), one, chance, crashes=0.2)
        yield one, names, folder / str(place), line


@pytest.mark.promise(
    "answers: lost, late, repeated, of another round, NaN, wrong shape or names, scaled",
    "left out whole, each with a reason in the round's `left_out`; the model is what the accepted ones "
    "make, each counted once",
)
@pytest.mark.promise("line: slow, or a slow site")
@pytest.mark.promise("site: away for some rounds")
@pytest.mark.promise("site: power loss, `kill -9`")
@pytest.mark.promise("server: power loss, `kill -9`")
@pytest.mark.promise(
    "site: stalled, but with signs of life",
    "ended by the round's time limit; no wait is longer than its limit",
)
@pytest.mark.parametrize("seed", range(12))
def test_random_faults(seed, plain, tmp_path, tally):
    for job, names, folder, line in schedules(seed, 4, plain, tmp_path):
        run_to_the_end(job, names, folder, line, tally)
        assert_made_of_what_was_accepted(job, folder, line)


@pytest.mark.promise("site: away for some rounds")
@pytest.mark.promise("server: power loss, `kill -9`")
@pytest.mark.parametrize("seed", range(100, 108))
def test_random_faults_during_a_search(seed, plain, tmp_path, tally):
    for job, names, folder, line in schedules(seed, 1, searching(plain), tmp_path):
        result = run_to_the_end(job, names, folder, line, tally)
        assert_made_of_what_was_accepted(job, folder, line)
        found = result.search
        assert [len(found.supernet_rounds), len(found.generations), len(found.rounds)] == [2, 2, 2]
        for site, each in found.sites.items():
            assert each.architecture and each.predicted_bytes <= each.budget_bytes
            assert all(site in done.left_out or done.sites[site].steps for done in found.rounds)


@pytest.mark.promise("answers: lost, late, repeated, of another round, NaN, wrong shape or names, scaled")
def test_random_faults_at_sites_that_train(plain, tmp_path, tally):
    data = write_sites(tmp_path / "data", site_1=4, site_2=4, site_3=4)
    names = ["site-1", "site-2", "site-3"]
    training = plain.training.model_copy(update={"steps_per_round": 1, "precision": "fp32"})
    job = varied(plain, rounds=3, min_sites=1).model_copy(update={"training": training})
    settings = {
        site: SiteSettings(data=data / site, threads=1, cache=data / "cache", state=tmp_path / site) for site in names
    }
    line = TroubledLine(
        lambda site: SiteWork(job, site, settings[site], settings[site].state),
        job,
        np.random.default_rng(3),
        share=0.5,
        crashes=0.2,
        spared=names[:1],
    )
    run_to_the_end(job, names, tmp_path / "out", line, tally)
    assert_made_of_what_was_accepted(job, tmp_path / "out", line)


@pytest.mark.promise("server: power loss, `kill -9`")
@pytest.mark.parametrize("search", [False, True], ids=["plain", "search"])
def test_kills_at_any_moment(search, plain, tmp_path, tally):
    """Server and sites are one process here, and it is killed for real: between any two instructions."""
    names = ["site-1", "site-2", "site-3"]
    job = varied(searching(plain) if search else plain, rounds=3)
    text = job.model_dump_json()
    _, seconds = run_and_kill(run_light, (text, names, tmp_path / "whole"), iter(()))
    whole, wanted = read_result(tmp_path / "whole" / "result.json"), models(tmp_path / "whole")
    chance = np.random.default_rng()
    for number in range(3 if search else 5):
        folder = tmp_path / str(number)
        killed, _ = run_and_kill(run_light, (text, names, folder), iter(chance.uniform(0, seconds, 4)))
        result = read_result(folder / "result.json")
        missing = sum(len(set(names) ^ done.sites.keys()) for done in result.rounds)
        tally.add(["everything killed"] * killed, lost=missing)
        assert_same(models(folder), wanted)
        assert [done.number for done in result.rounds] == [1, 2, 3] and not missing
        assert (result.final, result.personal) == (whole.final, whole.personal) and result.caveats == whole.caveats
        assert not verify_ledger(folder / TRAIL).problem
        assert not (folder / "checkpoints").exists()


def models(folder):
    """All models that a run has left, with their rounds."""
    found = sorted((folder / "model").rglob("*.safetensors"))
    return {path.relative_to(folder): load_model(path) for path in found}


def assert_same(found, wanted):
    assert found.keys() == wanted.keys()
    for name, (values, info) in found.items():
        assert info.round == wanted[name][1].round
        assert all(torch.equal(value, wanted[name][0][key]) for key, value in values.items()), name
