"""What those who follow a run see of it: curves that grow, and how far the sites are."""

from importlib.util import find_spec

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from fl_app.config import Job
from fl_app.curves import CURVES, Curves, TensorBoard
from fl_app.errors import FederationError
from fl_app.mlflow_run import MlflowRun
from fl_app.result import Round, SearchResult, SiteRound
from fl_app.under_way import UNDER_WAY, UnderWay, parse_under_way, read_under_way, write_under_way
from server.exchange import Exchange
from server.record import Record
from tests.federation import fedspleen
from tests.results import a_result


def shown(folder):
    """Each curve's steps."""
    events = EventAccumulator(str(folder))
    events.Reload()
    return {name: [each.step for each in events.Tensors(name)] for name in events.Tags()["tensors"]}


def test_a_round_is_drawn_once_its_model_is_validated(tmp_path):
    result = a_result(rounds=3, done=2)
    result.rounds[1].dice = None
    curves = Curves(TensorBoard(tmp_path))
    for _ in range(2):
        curves.update(result)
    assert shown(tmp_path)["dice/mean"] == [1] == shown(tmp_path)["loss/site-2"]
    result.rounds[1].dice = 0.5
    curves.update(result)
    curves.close()
    assert shown(tmp_path)["dice/mean"] == [1, 2]
    assert set(shown(tmp_path)) == {
        "dice/mean", "seconds/round", *(f"{what}/{site}" for what in ("dice", "loss") for site in ("site-1", "site-2")),
        "seconds/training site-1", "seconds/training site-2",
    }, "means of sites: nothing of a case"  # fmt: skip


def test_a_search_has_curves_of_its_own(tmp_path):
    result = a_result(done=1)
    site = {"site-1": SiteRound(loss=1.0)}
    result.search = SearchResult(
        space="a",
        supernet_rounds=[Round(number=1, seconds=1, sites=site), Round(number=2, sites=site)],
        rounds=[Round(number=1, seconds=1, dice=0.5), Round(number=2, seconds=1)],
    )
    curves = Curves(TensorBoard(tmp_path))
    curves.update(result)
    curves.close()
    assert shown(tmp_path)["supernet loss/site-1"] == [1] == shown(tmp_path)["searched dice/mean"]


def test_the_servers_record_draws_and_a_restart_goes_on_where_it_was(tmp_path):
    record = Record(tmp_path / "result.json", Job())
    assert not (tmp_path / CURVES).exists()
    record.result.rounds = a_result(done=2).rounds
    record.save()
    assert shown(tmp_path / CURVES)["dice/mean"] == [1, 2]
    again = Record(tmp_path / "result.json", Job())
    again.resume(a_result(done=2), [])
    again.result.rounds += [a_result(done=3).rounds[2]]
    again.finished()
    assert shown(tmp_path / CURVES)["dice/mean"] == [1, 2, 3]


def test_the_steps_are_those_of_sites_that_work(tmp_path):
    clock = [0.0]
    exchange = Exchange(["a", "b", "c", "d"], 4, 300, 10, clock=lambda: clock[0])
    for site, steps in (("a", 3), ("b", 5), ("c", 2), ("stranger", 7)):
        exchange.heard(site, steps)
    exchange.accept("b")
    assert exchange.steps == {"a": 3, "c": 2}
    clock[0] = 50
    exchange.heard("c", 9)
    assert exchange.steps == {"c": 9}, "a is silent"


def test_what_is_under_way_is_read_as_it_was_written(tmp_path):
    told = UnderWay(task="train", network="main", steps={"site-1": 12})
    write_under_way(tmp_path / UNDER_WAY, told)
    assert read_under_way(tmp_path / UNDER_WAY) == told


@pytest.mark.parametrize("text", ["", "{", '{"steps": {"a": "many"}}', '{"more": 1}'])
def test_what_is_no_progress_is_none(tmp_path, text):
    assert parse_under_way(text) == UnderWay() == read_under_way(tmp_path / UNDER_WAY)


def test_mlflow_gets_the_same_curves_and_each_point_once(tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow", reason="needs MLflow: pip install mlflow-skinny")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")  # in place of a server
    address = (tmp_path / "mlruns").as_uri()
    result = a_result(rounds=3, done=2)
    for _ in range(2):  # who follows a second time
        curves = Curves(MlflowRun(address, "job-1"))
        curves.update(result)
        curves.close()
    client = mlflow.MlflowClient(tracking_uri=address)
    (run,) = client.search_runs([client.get_experiment_by_name("fedspleen").experiment_id])
    history = client.get_metric_history(run.info.run_id, "dice/mean")
    assert [each.step for each in history] == [1, 2] and run.info.status == "FINISHED"
    assert [each.value for each in history] == [done.dice for done in result.rounds[:2]]
    assert "loss/site-2" in run.data.metrics


def test_an_mlflow_that_cannot_be_used_is_one_sentence(tmp_path, monkeypatch):
    pytest.importorskip("mlflow", reason="needs MLflow: pip install mlflow-skinny")
    with pytest.raises(FederationError, match="MLflow at nonsense://here: "):
        MlflowRun("nonsense://here", "job-1")


@pytest.mark.skipif(bool(find_spec("mlflow")), reason="MLflow is installed")
def test_without_mlflow_following_says_what_to_install(tmp_path):
    done = fedspleen("follow", "job-1", "--kit", tmp_path, "--mlflow", "http://localhost:5000")
    assert done.returncode == 2 and "pip install mlflow-skinny" in done.stderr and "Traceback" not in done.stderr
