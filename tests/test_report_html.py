"""`report.html`: what it says is what `result.json` says, and it asks nobody for anything."""

import re

import pytest

from fl_app.config import Job
from fl_app.networks.space.decoding import least_network
from fl_app.networks.space.memory import MemoryModel
from fl_app.reports.charts import time_by_site, time_shares
from fl_app.reports.page import Drawing, render_run, write_report
from fl_app.reports.story import ending, opening, verdict
from fl_app.reports.svg import nice_scale
from fl_app.reports.words import count, duration, listed, size
from fl_app.result import Round, SearchResult, SearchSite, SiteRound, write_result
from tests.browser import MISSING, browser
from tests.federation import fedspleen
from tests.results import a_finished_result, a_result, a_searched_result


def text_of(page):
    """What a reader sees, without markup, blanks as in a sentence."""
    visible = re.sub(r"<style>.*?</style>", "", page, flags=re.DOTALL)
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", visible))


def test_the_numbers_are_those_of_the_result():
    result = a_finished_result()
    result.initial_dice = 0.1
    text = text_of(render_run(result))
    for value in (result.final.mean_dice, result.final.mean_dice_over_sites, result.final.mean_surface_dice):
        assert f"{value:.3f}" in text
    for scores in (result.final.sites, *(baseline.sites for baseline in result.baselines.values())):
        for each in scores.values():
            assert f"{each.dice:.3f}" in text
    for words in ("site-1", "site-2", "2 cases", "seed: 0", "spacing_mm", "round 0 is the untrained network"):
        assert words in text


def test_the_opening_says_who_trained_what_with_which_result():
    result = a_finished_result()
    result.parameters, result.seconds = 1_200_000, 200
    assert opening(result) == (
        "Two sites trained one network (unet, 1.2 million parameters) to segment the spleen in CT, in two rounds and "
        "3 min 20 s, without sharing an image. Its best model, of round 2, reaches a mean Dice of 0.810 "
        "(95 % interval 0.67 to 0.96) on three test cases that no site had trained on."
    )


def with_dice(result, federated, local):
    for place, (together, alone) in enumerate(zip(federated, local, strict=True), start=1):
        result.final.sites[f"site-{place}"].dice = together
        result.baselines[f"local-site-{place}"].sites[f"site-{place}"].dice = alone
        for scores in (result.final.sites, result.baselines[f"local-site-{place}"].sites):
            scores[f"site-{place}"].cases, scores[f"site-{place}"].dice_std = 50, 0.01
    return verdict(result)


@pytest.mark.parametrize(
    ("federated", "local", "tone", "title"),
    [
        ((0.9, 0.92), (0.8, 0.82), "good", "Better than training alone, at every site"),
        ((0.9, 0.81), (0.8, 0.82), "caution", "Better than training alone on average, but not at every site"),
        ((0.81, 0.70), (0.8, 0.82), "bad", "Not better than training alone on average, but at some sites"),
        ((0.7, 0.72), (0.8, 0.82), "bad", "Not better than training alone"),
    ],
)
def test_whether_it_was_worth_it_is_said_site_by_site(federated, local, tone, title):
    told = with_dice(a_finished_result(), federated, local)
    assert (told.tone, told.title) == (tone, title)


def test_a_difference_that_may_be_chance_is_called_so():
    result = a_finished_result()
    assert "may be chance" in verdict(result).text and verdict(result).tone == "caution", "three cases"
    assert "may be chance" not in with_dice(result, (0.9, 0.92), (0.8, 0.82)).text, "100 cases, tight"


def test_what_was_not_measured_is_not_claimed():
    result = a_finished_result()
    result.baselines = {}
    page = text_of(render_run(result))
    assert "local: the site's own model" not in page and "Centralised" not in page
    assert "was not measured" in page and "Better than" not in page and "Which model, for whom" not in page


@pytest.mark.parametrize("status", ["failed", "interrupted", "running"])
def test_a_run_that_did_not_finish_says_so_first(status):
    result = a_result()
    result.status, result.error = status, "1 of 2 sites answered"
    told = ending(result)
    text = text_of(render_run(result))
    assert told.title in text and text.index(told.title) < text.index("Two sites were training")
    if status != "running":
        assert told.tone == "bad" and "1 of 2 sites answered. 2 of 3 rounds were complete." in text
    assert "The best validation Dice was 0.700, after round 2; no model was tested." in text


def test_a_run_that_never_began_has_a_page():
    result = a_result(done=0)
    result.status, result.sites = "failed", {}
    assert "No site had begun" in text_of(render_run(result))


def test_memory_and_what_stayed_at_the_sites_are_told():
    result = a_searched_result()
    result.rounds[0].sites["site-1"].memory_bytes = 1_500_000_000
    result.search.rounds[0].sites["site-1"].memory_bytes = 2_400_000_000
    result.config["federation"]["normalisation"] = "local"
    text = text_of(render_run(result))
    assert "cpu, bf16 2.4 GB 1.0 s" in text and "cpu, bf16 - 1.0 s" in text
    assert (
        "images, labels and scores of single cases, the normalisation layers and what the network of one site" in text
    )


def test_cautions_and_absent_sites_are_told_with_their_reasons():
    result = a_finished_result()
    result.caveats = ["without site-3, which could take no part"]
    result.refused = {"site-3": "its data cannot be used"}
    result.rounds[1].left_out = {"site-2": "it ran out of memory"}
    result.final.left_out = {"site-1": "it has gone"}
    text = text_of(render_run(result))
    for words in ("Before you rely on it", "Without site-3, which could take no part.", "its data cannot be used"):
        assert words in text
    for words in ("round 2 site-2 it ran out of memory", "test site-1 it has gone"):
        assert words in text


def test_personal_models_stand_beside_the_others():
    result = a_searched_result()
    text = text_of(render_run(result))
    assert "site-1 searched tuned 0.790 0.790 0.750 0.40 million 2.5 GB" in text
    assert "site-2 federated 0.850 0.850 0.850" in text
    assert "personalised: what each site keeps 120 0.790" in text and "searched tuned 120 0.790" in text
    assert "With the personal model that each site keeps, 0.820." in verdict(result).text, "(0.79 * 2 + 0.85 * 2) / 4"


def test_a_search_and_what_went_wrong_in_it_is_told():
    text = text_of(render_run(a_searched_result()))
    for words in (
        "a supernet of 9.0 million parameters in one round, then scored 24 networks together, in 1 min 30 s",
        "site-1 2.0 GB 3.0 GB does not fit",
        "supernet, round 1 site-2 its update was clipped",
        "personal models site-3 it has gone",
        "After round 1; own state lost at site-2.",
        "Validation Dice of the networks that were found",
        "the search took 1 min 30 s, training what it found took 5.0 s.",
    ):
        assert words in text, words


def test_what_a_site_or_an_error_says_cannot_become_markup():
    result = a_result()
    result.status, result.error = "failed", "<script>alert(1)</script>"
    result.refused = {"<b>x": "<img src=x>"}
    page = render_run(result)
    assert "<script" not in page and "<img" not in page and "<b>x" not in page


def test_the_page_loads_nothing_from_anywhere():
    page = render_run(a_finished_result(), [Drawing("site-1", "<svg xmlns='x'/>")])
    assert not re.search(r"https?://|@import|url\(|<script|srcset|<iframe|<object", page)
    addresses = re.findall(r'(?:src|href)="([^"]*)"', page)
    assert addresses and all(address.startswith("data:") for address in addresses)


@pytest.mark.parametrize("sites", [1, 8, 40])
def test_any_number_of_sites_fits(sites):
    result = a_result(sites=sites, rounds=100, done=30)
    page = render_run(result)
    assert page.count("<circle") >= 30 * sites
    assert (f"{sites} sites; point" in page) == (sites > 8)


def test_sites_stand_in_the_order_of_their_numbers():
    text = text_of(render_run(a_result(sites=12)))
    places = [text.index(f" site-{number} ") for number in (1, 2, 9, 10, 12)]
    assert places == sorted(places)


def test_several_organs_are_listed_below_their_site():
    result = a_finished_result()
    result.config["data"]["labels"] = {"liver": 1, "spleen": 2}
    organs = {"dice": 0.9123, "dice_std": 0.1, "surface_dice": 0.8}
    result.final.sites["site-1"].organs = {"liver": organs, "spleen": organs}
    text = text_of(render_run(result))
    assert "segment the liver and the spleen" in text and "liver 0.912 0.100 0.800" in text


def test_the_time_of_a_round_is_divided_without_a_rest():
    fast = SiteRound(training_seconds=4, validation_seconds=1)
    slow = SiteRound(training_seconds=7, validation_seconds=1)
    shares = time_shares(Round(number=1, seconds=10, sites={"fast": fast, "slow": slow, "absent": SiteRound()}))
    assert {name: (share.waiting, share.other) for name, share in shares.items()} == {"fast": (3, 2), "slow": (0, 2)}
    for share in shares.values():
        assert share.training + share.validation + share.waiting + share.other == 10


def test_time_is_summed_over_rounds():
    result = a_result()
    for done in result.rounds:
        for site in done.sites.values():
            site.training_seconds = 8
    chart = time_by_site(result)
    assert [(row.label, row.value, row.remark) for row in chart.rows] == [
        ("site-1", "20 s", "80% training"),
        ("site-2", "20 s", "80% training"),
    ]


@pytest.mark.parametrize(
    ("values", "ends"),
    [((0.83, 0.91), (0.82, 0.92)), ((0, 1), (0, 1)), ((3.2,), (2.6, 3.8)), ((), (0, 1)), ((11, 640), (0, 800))],
)
def test_axes_end_at_round_numbers_that_hold_all_values(values, ends):
    scale = nice_scale(values)
    assert (scale.low, scale.high) == pytest.approx(ends) and 3 <= len(scale.ticks) <= 8
    assert all(0 <= scale.percent(value) <= 100 for value in values)


def test_numbers_are_said_as_people_say_them():
    assert [duration(each) for each in (0, 4.25, 59.6, 200, 7260, 180_000)] == [
        "0 s", "4.2 s", "1 min", "3 min 20 s", "2 h 1 min", "2 d 2 h",
    ]  # fmt: skip
    assert [size(each) for each in (12, 4_800_000, 3.2e12)] == ["12 bytes", "4.8 MB", "3.2 TB"]
    assert (count(1, "site"), count(3, "site"), count(1200, "case")) == ("one site", "three sites", "1,200 cases")
    assert (listed(["a"]), listed(["a", "b", "c"])) == ("a", "a, b and c")


def test_the_command_makes_the_page_and_says_where(tmp_path):
    result = a_finished_result()
    space = Job().search.space
    network = least_network(MemoryModel(space, 1, (64, 64, 64))).to_json()
    result.config["search"] = Job().search.model_dump(mode="json")
    site = SearchSite(budget_bytes=2**30, main_bytes=2**20, architecture=network)
    result.search = SearchResult(space=space.name, consensus=network, sites={"site-1": site})
    write_result(tmp_path / "run" / "result.json", result)
    done = fedspleen("report", tmp_path / "run", "--out", tmp_path / "page.html")
    assert (done.returncode, done.stdout) == (0, f"{tmp_path / 'page.html'}\n")
    page = (tmp_path / "page.html").read_text()
    assert "Architecture of site-1" in page and "in common" not in page, "the same network is drawn once"
    assert page.count("data:image/svg") == 1


def test_a_folder_without_a_result_is_refused_in_one_sentence(tmp_path):
    done = fedspleen("report", tmp_path)
    assert done.returncode == 1 and "there is no such" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.slow
@pytest.mark.skipif(MISSING is not None, reason=MISSING or "")
def test_a_browser_shows_the_page_without_error_request_or_sideways_scrolling(tmp_path):
    result = a_finished_result()
    result.sites = {f"a-hospital-with-a-rather-long-name-{name}"[:40]: site for name, site in result.sites.items()}
    write_result(tmp_path / "run" / "result.json", result)
    page = write_report(tmp_path / "run")
    with browser(tmp_path / "profile") as opened:
        backgrounds = set()
        for width in (390, 1280):
            for dark in (False, True):
                opened.show(page, width, dark)
                assert opened.evaluate("document.documentElement.scrollWidth") <= width
                assert opened.evaluate("document.querySelector('h1').textContent") == "small"
                backgrounds.add(opened.evaluate("getComputedStyle(document.body).backgroundColor"))
                assert opened.evaluate("document.querySelector('svg.lines').getBoundingClientRect().width") > 200
                assert opened.console() == []
                assert [each for each in opened.requests() if not each.startswith("data:")] == [page.as_uri()]
        assert len(backgrounds) == 2, "light and dark"
        opened.show(page, 1280, dark=True, media="print")
        assert opened.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
        assert opened.printed().startswith(b"%PDF")
