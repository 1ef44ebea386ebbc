"""What a person reads while a run goes on and when it is done."""

import io

import pytest
from rich.console import Console

from fl_app.config import Job
from fl_app.reports.progress import Progress, round_line, status_line, time_left
from fl_app.reports.tables import table_of_models, table_of_tests
from fl_app.result import Baseline, Final, Result, Round, Site, SiteRound, SiteScores


def a_result(sites=2, rounds=3, done=2):
    names = [f"site-{number}" for number in range(1, sites + 1)]
    facts = {"device": "cpu", "precision": "bf16", "versions": {}, "preparation_seconds": 1.0, "data_warnings": 0}
    counts = {"training_cases": 3, "validation_cases": 1, "test_cases": 1}
    return Result(
        name="small",
        seed=0,
        rounds_asked=rounds,
        started="2026-01-01T00:00:00+00:00",
        versions={},
        config=Job().model_dump(mode="json"),
        sites={name: Site(**facts, **counts) for name in names},
        rounds=[
            Round(
                number=number,
                seconds=10.0,
                dice=0.5 + number / 10,
                sites={name: SiteRound(loss=1 / number, dice=0.5 + place / 100) for place, name in enumerate(names)},
            )
            for number in range(1, done + 1)
        ],
    )


def printed(what):
    console = Console(file=io.StringIO(), width=120)
    console.print(what)
    return console.file.getvalue()


def test_a_round_is_one_line_with_each_sites_loss_and_dice():
    result = a_result()
    line = round_line(result, result.rounds[1])
    assert line.startswith(
        "round 2/3  Dice 0.700  loss/Dice: site-1 0.500/0.500, site-2 0.500/0.510  10.0 s  10 s left"
    )


def test_many_sites_are_told_as_a_range():
    result = a_result(sites=40)
    line = round_line(result, result.rounds[0])
    assert "40 sites: loss 1.000 to 1.000, Dice 0.500 to 0.890" in line and len(line) < 120


def test_a_site_that_is_left_out_is_named_with_the_reason():
    result = a_result()
    result.rounds[1].left_out["site-3"] = "it ran out of memory"
    assert round_line(result, result.rounds[1]).endswith("; site-3 left out: it ran out of memory")


def test_the_time_left_is_estimated_from_the_rounds_so_far():
    assert time_left(a_result(rounds=62)) == "10 min left"
    assert time_left(a_result(rounds=5)) == "30 s left"
    assert time_left(a_result(rounds=2)) == "only the test is left"
    assert time_left(a_result(done=0)) == "time left unknown"


def test_the_status_names_who_is_waited_for():
    result = a_result()
    result.rounds.append(Round(number=3, sites={"site-2": SiteRound()}))
    assert status_line(result) == "round 3/3: waiting for site-1; 10 s left"
    result.rounds[-1].sites["site-1"] = SiteRound()
    assert "averaging" in status_line(result)
    result.rounds[-1].seconds = 9.0
    assert status_line(result) == "validating the last model"
    result.rounds[-1].dice = 0.9
    assert status_line(result) == "testing the best model on the held-out test cases"


def test_each_round_is_printed_once_and_only_when_its_model_is_validated():
    console = Console(file=io.StringIO(), width=200)
    result = a_result()
    result.rounds[1].dice = None
    with Progress(console) as progress:
        progress.update(result)
        progress.update(result)
        assert console.file.getvalue().count("round 1/3") == 1 and "round 2/3" not in console.file.getvalue()
        result.rounds[1].dice = 0.6
        progress.update(result)
    assert console.file.getvalue().count("round 2/3") == 1
    assert "2 sites ready" in console.file.getvalue()


@pytest.fixture
def finished():
    result = a_result()

    def scores(*values):
        return {
            f"site-{place}": SiteScores(cases=place, dice=value, dice_std=0.01, surface_dice=0.7)
            for place, value in enumerate(values, start=1)
        }

    result.final = Final(
        round=2,
        best_metric="val_dice",
        best_value=0.7,
        mean_dice=0.81,
        mean_dice_over_sites=0.8,
        mean_surface_dice=0.7,
        sites=scores(0.75, 0.85),
    )
    for name, values in (("local-site-1", (0.7, 0.5)), ("local-site-2", (0.4, 0.8)), ("centralised", (0.76, 0.86))):
        result.baselines[name] = Baseline(
            trained_on=["site-1"], steps=90, seconds=1.0, sites=scores(*values), mean_dice=0.5
        )
    return result


def test_the_test_table_has_every_site_and_all(finished):
    text = printed(table_of_tests(finished))
    for words in ("site-1", "site-2", "0.750", "0.850", "0.810", "model after round 2"):
        assert words in text


def test_the_comparison_pairs_each_sites_cases_with_its_own_model(finished):
    lines = printed(table_of_models(finished)).splitlines()
    own = next(line for line in lines if "each site's own" in line)
    assert "0.700" in own and "0.800" in own and "0.767" in own, "(0.7 * 1 + 0.8 * 2) / 3"
    federated = next(line for line in lines if "federated" in line)
    assert "0.750" in federated and "0.850" in federated and "2 x 90" in federated
    assert any("centralised" in line and "0.860" in line for line in lines)
