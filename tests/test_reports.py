"""What a person reads while a run goes on and when it is done."""

import io

from rich.console import Console

from fl_app.config import Job
from fl_app.reports.progress import Progress, round_line, search_lines, status_line, time_left
from fl_app.reports.tables import table_of_models, table_of_tests
from fl_app.result import Generation, Result, Round, SearchResult, SearchSite, SiteRound
from fl_app.under_way import UnderWay
from tests.results import a_finished_result, a_result


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
    nothing = UnderWay()
    assert status_line(result, nothing) == "round 3/3: waiting for site-1; 10 s left"
    result.rounds[-1].sites["site-1"] = SiteRound()
    assert "averaging" in status_line(result, nothing)
    result.rounds[-1].seconds = 9.0
    assert status_line(result, nothing) == "validating the last model"
    result.rounds[-1].dice = 0.9
    assert status_line(result, nothing) == "testing the best model on the held-out test cases"
    assert "that it could keep" in status_line(result, UnderWay(task="personalise"))


def test_the_status_counts_steps_within_a_round():
    result = a_result()
    result.rounds.append(Round(number=3))
    told = UnderWay(task="train", network="main", steps={"site-2": 40})
    assert status_line(result, told) == "round 3/3: waiting for site-1, site-2 (40 of 100 steps); 10 s left"
    many = a_result(sites=40)
    many.rounds.append(Round(number=3))
    told = UnderWay(task="train", steps={f"site-{number}": number for number in range(1, 41)})
    assert status_line(many, told).startswith(
        "round 3/3: waiting for site-1, site-10, site-11, site-12 and 36 more (1 to"
    )
    assert "(1 to 40 of 100 steps)" in status_line(many, told)


def test_the_status_of_a_search_names_its_stage():
    result = a_result()
    rounds = [Round(number=1, seconds=2.0), Round(number=2)]
    result.search = SearchResult(space="a", supernet_rounds=rounds)
    told = UnderWay(task="train", network="supernet", steps={"site-1": 7})
    assert status_line(result, told) == "supernet round 2/10: waiting for site-1 (7 of 50 steps), site-2"
    rounds[1].seconds = 1.0
    assert status_line(result, told) == "the sites score networks and choose their own"
    result.search.rounds.append(Round(number=1))
    assert status_line(result, told).startswith("found networks, round 1/10: waiting for site-1 (7 of 100 steps)")


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


def test_the_test_table_has_every_site_and_all():
    text = printed(table_of_tests(a_finished_result()))
    for words in ("site-1", "site-2", "0.750", "0.850", "0.810", "model after round 2"):
        assert words in text


def test_the_comparison_pairs_each_sites_cases_with_its_own_model():
    lines = printed(table_of_models(a_finished_result())).splitlines()
    own = next(line for line in lines if "each site's own" in line)
    assert "0.700" in own and "0.800" in own and "0.767" in own, "(0.7 * 1 + 0.8 * 2) / 3"
    federated = next(line for line in lines if "federated" in line)
    assert "0.750" in federated and "0.850" in federated and "2 x 90" in federated
    assert any("centralised" in line and "0.860" in line for line in lines)


def test_each_stage_of_a_search_is_told_once_it_is_finished():
    search = SearchResult(
        space="free-3x2-c4-half",
        supernet_rounds=[
            Round(number=1, seconds=2.0, sites={"site-1": SiteRound(loss=1.25)}),
            Round(number=2),
        ],
        generations=[Generation(number=1, scored=4, best_loss=0.5, seconds=1.0)],
        consensus="{}",
        sites={"site-1": SearchSite(budget_bytes=2**21, main_bytes=1, parameters=1234, measured_bytes=2**20)},
        rounds=[Round(number=1, seconds=3.0, dice=0.75), Round(number=2, seconds=3.0)],
    )
    growing = Result(
        name="a", seed=0, rounds_asked=1, started="", versions={}, config=Job().model_dump(), search=search
    )
    told = search_lines(growing)
    assert len(told) == 4
    assert told[0].startswith("supernet round 1/10") and "site-1 1.250" in told[0]
    assert "4 networks scored, best loss 0.500" in told[1]
    assert "1,234 parameters: 1.0 of 2.0 MiB" in told[2]
    assert told[3].startswith("found networks, round 1/10  Dice 0.750")
