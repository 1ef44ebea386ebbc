"""`fedspleen simulate`, with real processes: what a run leaves, and that it can be believed."""

import csv
import json
import os
import re
import subprocess
import sys
import time
from types import SimpleNamespace

import psutil
import pytest
import torch
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from fl_app.config_file import load_job
from fl_app.data.site_data import load_site_data
from fl_app.model_file import load_model
from fl_app.result import read_result
from fl_app.simulation import Events, Simulation, run_simulation
from fl_app.site import SiteSettings, write_site
from fl_app.training.trainer import Trainer
from tests.federation import fedspleen, processes_about, start_fedspleen, write_job, write_sites
from tests.test_house import ROOT

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """One finished run of two sites, compared with its baselines; the folder and what was printed."""
    folder = tmp_path_factory.mktemp("a folder with spaces")  # which FLARE's simulator does not take
    data = write_sites(folder / "data", site_1=7, site_2=6)
    job = write_job(folder / "job.yaml")
    arguments = ("simulate", "--config", job, "--data", data)
    done = fedspleen(*arguments, "--out", folder / "out", "--compare", cwd=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder, done.stdout, arguments


def test_the_result_tells_the_whole_run(run):
    folder, printed, _ = run
    result = read_result(folder / "out" / "result.json")
    assert (result.status, result.error, result.rounds_asked) == ("finished", None, 3)
    assert result.config["training"]["steps_per_round"] == 30
    assert set(result.versions) == {"python", "fedspleen", "nvflare", "monai", "torch", "numpy"}
    for number, done in enumerate(result.rounds, start=1):
        assert done.number == number and set(done.sites) == {"site-1", "site-2"} and not done.left_out
        assert sum(site.weight for site in done.sites.values()) == pytest.approx(1)
        for site in done.sites.values():
            assert 10**8 < site.memory_bytes < 10**11
            assert site.steps == 30 and site.loss > 0 and site.training_seconds > 0
            # a byte a value both ways and some scales; the first model is built from the seed
            assert site.bytes_sent < 0.5 * result.exchanged_bytes and result.exchanged_bytes > 4 * result.parameters - 1
            assert site.bytes_received == (site.bytes_sent if number > 1 else 0)
            assert 0 <= site.dice <= 1 and site.validation_cases > 0
    assert f"{result.final.mean_dice:.3f}" in printed
    assert "round 3/3" in printed and "Traceback" not in printed


def test_sites_share_the_processors_cores(run):
    wanted = max(1, len(os.sched_getaffinity(0)) // 2)
    for site in ("site-1", "site-2"):
        assert yaml.safe_load((run[0] / "out" / "sites" / site / "site.yaml").read_text())["threads"] == wanted


def test_the_model_learned(run):
    result = read_result(run[0] / "out" / "result.json")
    assert result.final.mean_dice > 0.5 > result.initial_dice + 0.2


def test_the_final_dice_is_what_the_saved_model_scores_when_it_is_loaded_again(run):
    folder, _, _ = run
    result = read_result(folder / "out" / "result.json")
    weights, info = load_model(folder / "out" / "model" / "best.safetensors")
    assert info.round == result.final.round
    assert info.metric == ("val_dice", result.final.best_value)
    assert info.metric[1] == max(done.dice for done in result.rounds)
    everything = []
    for site, told in result.final.sites.items():
        data = load_site_data(folder / "data" / site, info.job.data, info.job.seed, cache=None)
        trainer = Trainer(info.job, [], torch.device("cpu"), site)
        trainer.load(weights)
        scores = [score.dice["spleen"] for score in trainer.score(data.test, native=True)]
        assert told.cases == len(scores)
        assert sum(scores) / len(scores) == pytest.approx(told.dice, abs=1e-3)
        with (folder / "out" / "sites" / site / "test_cases.csv").open() as stream:
            written = [float(line["dice"]) for line in csv.DictReader(stream)]
        assert written == pytest.approx(scores, abs=1e-3)
        everything += scores
    assert sum(everything) / len(everything) == pytest.approx(result.final.mean_dice, abs=1e-3)


def test_the_last_model_is_kept_beside_the_best(run):
    weights, info = load_model(run[0] / "out" / "model" / "last.safetensors")
    assert info.round == 3 and info.job.data.labels == {"spleen": 1}
    assert all(torch.isfinite(value).all() for value in weights.values())


def test_nothing_about_a_case_reaches_the_server(run):
    """Paths, file names and case names stay at the sites: not in the server's log, result or models."""
    out = run[0] / "out"
    served = [out / "logs" / "server.log", out / "result.json", *(out / "model").iterdir()]
    for path in served:
        content = path.read_bytes()
        assert b"secretpatient" not in content and str(run[0] / "data").encode() not in content, path


def test_a_run_ends_with_a_page_to_look_at(run):
    """One for the lead, and one for each site with its own cases in it."""
    folder, printed, _ = run
    assert f"report: {folder / 'out' / 'report.html'}" in printed and "\x1b" not in printed
    result = read_result(folder / "out" / "result.json")
    assert f"{result.final.mean_dice:.3f}" in (folder / "out" / "report.html").read_text()
    assert "secretpatient" not in (folder / "out" / "report.html").read_text()
    for site in result.sites:
        assert "secretpatient" in (folder / "out" / "sites" / site / "report.html").read_text()


def test_every_process_has_a_log(run):
    logs = {path.name for path in (run[0] / "out" / "logs").iterdir()}
    assert {"server.log", "site-1.log", "site-2.log", "simulator.log"} <= logs
    assert not (run[0] / "out" / "flare").exists()


def test_tensorboard_shows_the_numbers_of_the_result(run):
    result = read_result(run[0] / "out" / "result.json")
    events = EventAccumulator(str(run[0] / "out" / "tensorboard"))
    events.Reload()
    shown = [float(event.tensor_proto.float_val[0]) for event in events.Tensors("dice/mean")]
    assert shown == pytest.approx([done.dice for done in result.rounds])
    assert [event.step for event in events.Tensors("loss/site-2")] == [1, 2, 3]


def test_the_python_of_the_documentation_reads_result_and_model(run):
    page = (ROOT / "docs" / "result.md").read_text()
    blocks = re.findall(r"^```python\n(.*?)^```$", page, flags=re.DOTALL | re.MULTILINE)
    assert len(blocks) == 2
    known = {}
    for block in blocks:
        exec(re.sub(r"results/[\w-]+(?=/)", str(run[0] / "out"), block), known)
    assert known["result"].final.mean_dice is not None and known["info"].round == known["result"].final.round


def test_baselines_have_the_same_budget_and_the_same_test_cases(run):
    result = read_result(run[0] / "out" / "result.json")
    assert set(result.baselines) == {"local-site-1", "local-site-2", "centralised"}
    assert result.baselines["local-site-1"].steps == 90 and result.baselines["centralised"].steps == 180
    for baseline in result.baselines.values():
        for site, scores in baseline.sites.items():
            assert scores.cases == result.final.sites[site].cases
    for words in ("local: each site's own", "federated", "centralised"):
        assert words in run[1]


def test_deterministic_runs_give_the_same_weights_bit_for_bit(run):
    folder, _, arguments = run
    again = fedspleen(*arguments, "--out", folder / "again", cwd=folder)
    assert again.returncode == 0, again.stderr
    for name in ("best", "last"):
        first, _ = load_model(folder / "out" / "model" / f"{name}.safetensors")
        second, _ = load_model(folder / "again" / "model" / f"{name}.safetensors")
        assert all(torch.equal(first[key], second[key]) for key in first)
    told = [read_result(folder / each / "result.json").final for each in ("out", "again")]
    assert told[0] == told[1]


def test_budgets_are_for_all_sites_or_for_each(run):
    folder, _, arguments = run
    done = fedspleen(*arguments, *["--memory-budget-gib", 1] * 3, "--out", folder / "never", cwd=folder)
    assert done.returncode == 2 and "given 3 times for 2 sites - once for all" in done.stderr


def test_a_result_is_never_overwritten(run):
    folder, _, arguments = run
    before = (folder / "out" / "result.json").read_bytes()
    done = fedspleen(*arguments, "--out", folder / "out", cwd=folder)
    assert done.returncode == 2 and "name a new folder" in done.stderr and "Traceback" not in done.stderr
    assert (folder / "out" / "result.json").read_bytes() == before


@pytest.mark.parametrize(("quorum", "status"), [(1, "finished"), pytest.param(0, "failed", marks=pytest.mark.long)])
def test_a_site_that_cannot_use_its_data_is_left_out_or_ends_the_job(tmp_path, quorum, status):
    """Straight into FLARE, past the check that `simulate` makes first: the site itself has to notice."""
    write_sites(tmp_path / "data", site_1=4, site_2=4)
    (tmp_path / "data" / "site-2" / "imagesTr" / "secretpatient5_0.nii.gz").write_bytes(b"no image")
    for site in ("site-1", "site-2"):
        write_site(tmp_path / site / "site.yaml", SiteSettings(data=tmp_path / "data" / site, threads=1, device="cpu"))
    job = write_job(tmp_path / "job.yaml", federation={"min_sites": quorum, "rounds": 1, "grace_s": 1})
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "fl_app.job", str(tmp_path / "flare"), str(job), "site-1", "site-2"],
            stdin=subprocess.PIPE,  # closing it ends the family
            stdout=log,
            stderr=log,
            env={**os.environ, "FEDSPLEEN_SITE_FILE": str(tmp_path / "{site}" / "site.yaml")},
        )
        process.wait(timeout=120)
    server = tmp_path / "flare" / "run" / "server"
    told = json.loads((server / "simulate_job" / "result" / "result.json").read_text())
    assert told["status"] == status
    assert set(told["refused"]) == {"site-2"} and "its data cannot be used" in told["refused"]["site-2"]
    assert "secretpatient" not in (server / "log.txt").read_text()
    assert "secretpatient5_0" in (tmp_path / "flare" / "run" / "site-2" / "log.txt").read_text()
    if status == "failed":
        assert re.search(r"1 of 2 sites could take part before the first round, 2 are needed", told["error"])
    else:
        assert set(told["rounds"][0]["sites"]) == {"site-1"}


def test_a_simulation_that_was_killed_goes_on_to_the_same_model(run, tmp_path):
    folder, _, arguments = run
    out = tmp_path / "out"
    killed = start_fedspleen(*arguments, "--out", out, cwd=folder)
    end = time.monotonic() + 150
    while not (out / "result.json").exists() or len(read_result(out / "result.json").rounds) < 2:
        assert killed.poll() is None and time.monotonic() < end
        time.sleep(0.05)
    killed.kill()
    killed.communicate()
    while processes_about(out):  # they notice that their starter is gone
        assert time.monotonic() < end
        time.sleep(0.2)
    done = fedspleen("simulate", "--resume", out, cwd=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    result = read_result(out / "result.json")
    assert result.restarts[0].after_round >= 1 and result.restarts[0].lost_state == []
    for name in ("best", "last"):
        here, info = load_model(out / "model" / f"{name}.safetensors")
        there, other = load_model(folder / "out" / "model" / f"{name}.safetensors")
        assert info.round == other.round and all(torch.equal(value, there[key]) for key, value in here.items())
    assert fedspleen("simulate", "--resume", out, cwd=folder).returncode == 2, "it is finished"


def test_sites_that_take_turns_in_one_process_train_the_same_model(run, tmp_path):
    folder, _, arguments = run
    cores = sorted(os.sched_getaffinity(0))
    share = cores[: max(1, len(cores) // 2)]  # the threads that each of the two sites had in a process of its own
    out = tmp_path / "out"
    done = fedspleen(
        *arguments, "--out", out, "--one-process", cwd=folder, preexec_fn=lambda: os.sched_setaffinity(0, share)
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert read_result(out / "result.json").final.mean_dice == read_result(folder / "out/result.json").final.mean_dice
    here, _ = load_model(out / "model" / "best.safetensors")
    there, _ = load_model(folder / "out" / "model" / "best.safetensors")
    assert all(torch.equal(value, there[key]) for key, value in here.items())
    assert not (out / "logs" / "server.log").exists(), "that would be FLARE's"


def test_sites_take_turns_where_the_memory_holds_no_process_for_each(tmp_path, monkeypatch):
    data = write_sites(tmp_path / "data", site_1=4, site_2=4, site_3=4)
    job = load_job(write_job(tmp_path / "job.yaml", federation={"rounds": 1}, training={"steps_per_round": 1}))
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=10**9))
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0})  # other tests may hold the other cores
    told = []
    events = Events(told.append, lambda site, findings: None, lambda result, under_way: None, lambda name: None)
    run_simulation(Simulation(job, tmp_path / "out", data, shared=tmp_path), events)
    assert "the free memory does not hold 3 processes: the sites take turns in one, without FLARE" in told
    assert set(read_result(tmp_path / "out" / "result.json").final.sites) == {"site-1", "site-2", "site-3"}
