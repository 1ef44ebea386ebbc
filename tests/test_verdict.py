"""A run that is not what was asked for says so and does not end like one that is."""

import pytest
import typer
from rich.console import Console

from fl_app.cli.ending import print_end
from fl_app.config_file import load_job
from fl_app.errors import FederationError
from fl_app.model_file import load_model
from fl_app.rehearsal import rehearsal_channel, rehearse
from fl_app.result import Personal, Restart, Round, SearchResult, SiteRound, read_result, write_result
from fl_app.site import SiteSettings
from fl_app.verdict import find_caveats, shortfalls
from tests.federation import write_job, write_sites
from tests.results import a_finished_result

AWAY = {"site-2": "it did not answer"}
UNTRAINED = Round(number=1, metrics={"val_dice": 0.1})
UNTESTED = a_finished_result().final.model_copy(update={"left_out": AWAY})


def a_round(number, left_out=()):
    return Round(
        number=number,
        sites={site: SiteRound(steps=2) for site in ("site-1", "site-2") if site not in left_out},
        left_out=dict.fromkeys(left_out, "it did not answer"),
    )


def finished(**changes):
    return a_finished_result().model_copy(update={"initial_metrics": {"val_dice": 0.1}, **changes})


def test_a_run_that_is_what_was_asked_for_has_no_caveat():
    assert find_caveats(finished()) == []


@pytest.mark.promise("run: nothing learned, or a site missing at its end")
@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"refused": AWAY}, "without site-2, which could take no part"),
        ({"rounds": [a_round(n, ["site-2"]) for n in (1, 2)]}, "no update of site-2 is in the model"),
        ({"initial_metrics": {"val_dice": 0.7}}, "nothing was learned"),
        ({"final": None, "search": SearchResult(space="small", rounds=[UNTRAINED])}, "nothing was learned"),
        ({"final": UNTESTED}, "not tested at site-2"),
        ({"personal": Personal(left_out=AWAY)}, "no model of its own was made at site-2"),
    ],
)
def test_each_shortfall_is_one_sentence_and_a_caveat(changes, words):
    found = shortfalls(finished(**changes))
    assert len(found) == 1 and words in found[0]
    assert find_caveats(finished(**changes)) == found


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"rounds": [a_round(1), a_round(2, ["site-2"]), a_round(3)]}, "1 of 3 rounds went without site-2"),
        ({"restarts": [Restart(after_round=1, lost_state=["site-1"])]}, "site-1 went on without its own state"),
    ],
)
def test_what_a_good_run_is_to_be_read_with_is_no_shortfall(changes, words):
    assert shortfalls(finished(**changes)) == []
    (found,) = find_caveats(finished(**changes))
    assert words in found


def test_a_good_run_ends_well(tmp_path):
    write_result(tmp_path / "result.json", finished())
    print_end(Console(), finished(), tmp_path)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_sites(tmp_path_factory.mktemp("data"), site_1=4, site_2=4)


def run(data, folder, around=lambda channel: channel):
    job = load_job(
        write_job(
            folder / "job.yaml",
            training={"steps_per_round": 1, "precision": "fp32", "learning_rate": 1e-9},
            network={"channels": [2, 4]},
            federation={"rounds": 1},
        )
    )
    sites = {site: SiteSettings(data=data / site, threads=1) for site in ("site-1", "site-2")}
    return rehearse(job, sites, folder / "out", around(rehearsal_channel(job, sites)))


@pytest.mark.promise(
    "run: nothing learned, or a site missing at its end",
    "a caveat and exit code 3",
)
def test_a_run_that_learned_nothing_ends_with_exit_code_3(data, tmp_path, capsys):
    result = run(data, tmp_path)
    with pytest.raises(typer.Exit) as end:
        print_end(Console(width=200), result, tmp_path / "out")
    assert end.value.exit_code == 3 and "nothing was learned" in capsys.readouterr().out
    told = read_result(tmp_path / "out" / "result.json")
    assert told.status == "finished" and "nothing was learned" in told.caveats[0]


class WithoutOrgan:
    """A channel to sites whose validation cases hold no organ."""

    def __init__(self, channel):
        self._channel = channel

    def ask(self, task, payloads, exchange, answer):
        def take(site, values, report):
            if report.get("received"):
                report["received"]["metrics"] = {"val_dice": None}
            return answer(site, values, report)

        self._channel.ask(task, payloads, exchange, take)


@pytest.mark.promise(
    "run: no site reports the best-model metric",
    "the job fails and says so; the last model is kept",
)
def test_a_run_whose_metric_no_site_reports_fails_and_keeps_its_last_model(data, tmp_path):
    with pytest.raises(FederationError, match="no site reported val_dice, so there is no best model"):
        run(data, tmp_path, WithoutOrgan)
    told = read_result(tmp_path / "out" / "result.json")
    assert told.status == "failed" and "no site reported val_dice" in told.error and len(told.rounds) == 1
    assert load_model(tmp_path / "out" / "model" / "last.safetensors")[1].round == 1
