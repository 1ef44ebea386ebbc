import json
import math
import resource

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fl_app.config import Job
from fl_app.errors import DataError
from fl_app.messages import Spread, TestReport
from fl_app.result import (
    SCHEMA_VERSION,
    Baseline,
    Final,
    Result,
    Round,
    Site,
    SiteRound,
    SiteScores,
    read_result,
    site_scores,
    software_versions,
    weighted_mean,
    write_result,
)


def result(**more):
    return Result(
        name="spleen",
        seed=0,
        rounds_asked=2,
        started="2026-01-01T00:00:00+00:00",
        versions={"torch": "2"},
        config=Job().model_dump(mode="json"),
        **more,
    )


def full_result():
    scores = SiteScores(cases=2, dice=0.9, dice_std=0.1, surface_dice=0.8, organs={"spleen": {"dice": 0.9}})
    return result(
        status="finished",
        sites={
            "a": Site(
                training_cases=3,
                validation_cases=1,
                test_cases=1,
                data_warnings=0,
                device="cpu",
                precision="bf16",
                versions={},
                preparation_seconds=0.5,
            )
        },
        refused={"b": "its data cannot be used"},
        initial_dice=0.01,
        rounds=[Round(number=1, sites={"a": SiteRound(loss=0.5, metrics={"val_dice": None})}, left_out={"b": "late"})],
        final=Final(
            round=1,
            best_metric="val_dice",
            best_value=0.9,
            mean_dice=0.9,
            mean_dice_over_sites=0.9,
            mean_surface_dice=None,
            sites={"a": scores},
        ),
        baselines={"local-a": Baseline(trained_on=["a"], steps=9, seconds=1.0, sites={"a": scores}, mean_dice=None)},
    )


@pytest.mark.parametrize("written", [result(), full_result()], ids=["fresh", "full"])
def test_a_result_comes_back_as_it_was_written(tmp_path, written):
    write_result(tmp_path / "result.json", written)
    assert read_result(tmp_path / "result.json") == written


@pytest.mark.parametrize("status", ["running", "finished", "failed", "interrupted"])
def test_each_state_of_a_run_can_be_written_and_read(tmp_path, status):
    write_result(tmp_path / "r", result(status=status, error="the power failed" if status == "interrupted" else None))
    assert read_result(tmp_path / "r").status == status


def test_other_states_are_refused(tmp_path):
    path = tmp_path / "r"
    write_result(path, result())
    path.write_text(path.read_text().replace('"running"', '"paused"'))
    with pytest.raises(DataError, match="not a result of fedspleen"):
        read_result(path)


def test_a_new_result_is_running_and_names_its_schema():
    assert (result().status, result().schema_version) == ("running", SCHEMA_VERSION)


def test_the_file_is_plain_json_that_ends_with_a_line_break(tmp_path):
    write_result(tmp_path / "r", full_result())
    text = (tmp_path / "r").read_text()
    assert text.endswith("}\n")
    plain = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert plain["rounds"][0]["sites"]["a"]["metrics"] == {"val_dice": None}


@pytest.mark.parametrize(
    "place",
    [
        lambda plain: plain,
        lambda plain: plain["rounds"][0],
        lambda plain: plain["rounds"][0]["sites"]["a"],
        lambda plain: plain["sites"]["a"],
        lambda plain: plain["final"],
        lambda plain: plain["final"]["sites"]["a"],
        lambda plain: plain["baselines"]["local-a"],
    ],
)
def test_an_unknown_key_is_refused_at_every_depth(tmp_path, place):
    path = tmp_path / "r"
    write_result(path, full_result())
    plain = json.loads(path.read_text())
    place(plain)["surprise"] = 1
    path.write_text(json.dumps(plain))
    with pytest.raises(DataError, match="not a result of fedspleen"):
        read_result(path)


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_a_number_that_json_lacks_is_refused_and_the_old_file_stays(tmp_path, number):
    path = tmp_path / "r"
    write_result(path, result())
    before = path.read_bytes()
    for broken in (result(initial_dice=number), result(rounds=[Round(number=1, sites={"a": SiteRound(loss=number)})])):
        with pytest.raises(ValueError, match="JSON"):
            write_result(path, broken)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "r"
    write_result(path, result())
    before = path.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(OSError, match="large"):
            write_result(path, result(error="x" * 200_000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_folders_are_made_and_no_temporary_file_remains(tmp_path):
    path = tmp_path / "a" / "b" / "result.json"
    write_result(path, result())
    write_result(path, full_result())
    assert list(path.parent.iterdir()) == [path]
    assert read_result(path).status == "finished"


def test_text_in_any_script_survives(tmp_path):
    write_result(tmp_path / "r", result(error="Köln: 脾臓 was left out \N{PILE OF POO}"))
    assert read_result(tmp_path / "r").error == "Köln: 脾臓 was left out \N{PILE OF POO}"


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"{}", b"\xff\xfe", b'{"name": "x"}'])
def test_what_is_no_result_is_refused_in_one_line(tmp_path, content):
    (tmp_path / "r").write_bytes(content)
    with pytest.raises(DataError, match="not a result of fedspleen") as caught:
        read_result(tmp_path / "r")
    assert "\n" not in str(caught.value)


def test_every_cut_of_a_result_is_refused(tmp_path):
    path = tmp_path / "r"
    write_result(path, full_result())
    content = path.read_bytes().rstrip()
    for length in range(0, len(content), 97):
        path.write_bytes(content[:length])
        with pytest.raises(DataError):
            read_result(path)


def test_a_missing_result_and_a_folder_are_named(tmp_path):
    with pytest.raises(DataError, match="there is no such result"):
        read_result(tmp_path / "r")
    with pytest.raises(DataError, match=str(tmp_path)):
        read_result(tmp_path)


def test_the_versions_of_what_decides_the_numbers_are_known():
    versions = software_versions()
    assert set(versions) == {"python", "fedspleen", "nvflare", "monai", "torch", "numpy"}
    assert all(version[0].isdigit() for version in versions.values())


def test_a_weighted_mean_by_hand():
    assert weighted_mean([(0.5, 1), (1.0, 3)]) == 0.875


def test_a_weighted_mean_leaves_out_what_is_unknown_or_weighs_nothing():
    assert weighted_mean([(0.5, 2), (None, 100), (0.9, 0)]) == 0.5


@pytest.mark.parametrize("values", [[], [(None, 3)], [(0.5, 0)], [(None, 0), (0.1, 0)]])
def test_a_weighted_mean_of_nothing_is_unknown(values):
    assert weighted_mean(values) is None


@given(st.lists(st.tuples(st.none() | st.floats(0, 1), st.integers(0, 10**6)), max_size=8), st.randoms())
def test_a_weighted_mean_lies_between_its_values_in_any_order(values, chance):
    mean = weighted_mean(iter(values))
    known = [value for value, weight in values if value is not None and weight]
    assert (mean is None) == (not known)
    if mean is not None:
        assert min(known) - 1e-12 <= mean <= max(known) + 1e-12
    shuffled = chance.sample(values, len(values))
    assert weighted_mean(shuffled) == mean


def spread(mean, std=0.1, cases=2):
    return Spread(mean=mean, std=None if mean is None else std, cases=cases)


def test_test_scores_of_one_organ_are_its_own():
    report = TestReport(dice={"spleen": spread(0.9)}, surface_dice={"spleen": spread(0.8)}, seconds=1)
    assert site_scores(report) == SiteScores(
        cases=2,
        dice=0.9,
        dice_std=0.1,
        surface_dice=0.8,
        organs={"spleen": {"dice": 0.9, "dice_std": 0.1, "surface_dice": 0.8}},
    )


def test_test_scores_of_several_organs_are_averaged_by_their_cases():
    organs = {"spleen": spread(0.9, cases=3), "liver": spread(0.5, cases=1), "aorta": spread(None, cases=0)}
    scores = site_scores(TestReport(dice=organs, surface_dice=organs, seconds=1))
    assert scores.cases == 3
    assert scores.dice == pytest.approx(0.8) == scores.surface_dice
    assert scores.organs["aorta"] == {"dice": None, "dice_std": None, "surface_dice": None}


def test_test_scores_of_a_site_without_any_organ_are_unknown():
    nothing = {"spleen": spread(None, cases=0)}
    scores = site_scores(TestReport(dice=nothing, surface_dice=nothing, seconds=1))
    assert (scores.cases, scores.dice, scores.surface_dice) == (0, None, None)
