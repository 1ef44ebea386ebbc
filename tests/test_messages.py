import errno
import math
import re

import pytest
import torch
from pydantic import ValidationError
from safetensors import SafetensorError

from clients.failures import classify
from fl_app.errors import ConfigError, DataError, FederationError, UsageError
from fl_app.messages import (
    TASKS,
    SiteFailure,
    SiteReady,
    Spread,
    TestReport,
    TrainReport,
    Validation,
    ValidationReport,
    payload_bytes,
)

VALIDATION = {"cases": 2, "metrics": {"val_dice": 0.5, "val_dice_liver": None}, "seconds": 0.1}
SPREAD = {"mean": 0.9, "std": 0.1, "cases": 3}
READY = {
    "training_cases": 3,
    "validation_cases": 1,
    "test_cases": 1,
    "warnings": 0,
    "device": "cpu",
    "saving": {
        "recompute": True,
        "early_update": True,
        "patch_share": 0.75,
        "frozen_share": 0.5,
        "window_voxels": (96, 88, 48),
    },
    "precision": "bf16",
    "versions": {"torch": "2"},
    "restored": None,
    "search": None,
    "seconds": 1.5,
}
TRAIN = {
    "round": 1,
    "loss": 0.7,
    "steps": 10,
    "training_cases": 3,
    "training_seconds": 2.0,
    "memory_bytes": 10**9,
    "received": VALIDATION,
    "touched": None,
}
TEST = {"dice": {"spleen": SPREAD}, "surface_dice": {"spleen": SPREAD}, "seconds": 3.0}
REPORTS = [
    (SiteReady, READY),
    (TrainReport, TRAIN),
    (ValidationReport, {"received": VALIDATION}),
    (TestReport, TEST),
    (Validation, VALIDATION),
    (Spread, SPREAD),
]


def refused(report, values):
    with pytest.raises(ValidationError):
        report.model_validate(values)


@pytest.mark.parametrize(("report", "values"), REPORTS)
def test_a_report_survives_the_way_as_plain_data(report, values):
    sent = report.model_validate(values)
    assert report.model_validate(sent.model_dump()) == sent
    assert sent.model_dump() == values


@pytest.mark.parametrize(("report", "values"), REPORTS)
def test_a_report_with_an_unknown_key_is_refused(report, values):
    refused(report, values | {"case_names": ["patient 7"]})


@pytest.mark.parametrize(("report", "values"), REPORTS)
def test_a_report_that_lacks_a_key_is_refused(report, values):
    for key in values:
        refused(report, {name: value for name, value in values.items() if name != key})


@pytest.mark.parametrize(("report", "values"), REPORTS)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, -1, -0.001, 1e12, "many", [], None])
def test_a_count_or_a_time_that_cannot_be_is_refused(report, values, bad):
    for key in values:
        if key in ("seconds", "cases", "steps", "training_seconds", "warnings") or key.endswith("_cases"):
            refused(report, values | {key: bad})


@pytest.mark.parametrize("score", [math.nan, math.inf, -0.01, 1.01, "good"])
def test_a_score_outside_0_to_1_is_refused(score):
    refused(Validation, VALIDATION | {"metrics": {"val_dice": score}})
    refused(Spread, SPREAD | {"mean": score})
    refused(Spread, SPREAD | {"std": score})
    refused(TestReport, TEST | {"dice": {"spleen": SPREAD | {"mean": score}}})


@pytest.mark.parametrize("score", [0, 1, 0.5, None])
def test_a_score_from_0_to_1_or_none_is_accepted(score):
    assert Validation.model_validate(VALIDATION | {"metrics": {"x": score}}).metrics["x"] == score
    assert Spread.model_validate(SPREAD | {"mean": score}).mean == score


@pytest.mark.parametrize("loss", [math.nan, math.inf, -math.inf, "low"])
def test_a_loss_that_is_no_number_is_refused(loss):
    refused(TrainReport, TRAIN | {"loss": loss})


@pytest.mark.parametrize("loss", [None, 0, 12.5, -0.5])
def test_any_finite_loss_or_none_is_accepted(loss):
    assert TrainReport.model_validate(TRAIN | {"loss": loss}).loss == loss


def test_rounds_count_from_one():
    refused(TrainReport, TRAIN | {"round": 0})
    refused(TrainReport, TRAIN | {"round": 1.5})


def test_a_site_tells_the_precision_it_computes_in_and_no_long_story():
    refused(SiteReady, READY | {"precision": "fp8"})
    refused(SiteReady, READY | {"device": "x" * 101})


def test_both_scores_of_a_test_report_are_of_the_same_organs():
    refused(TestReport, TEST | {"surface_dice": {}})
    refused(TestReport, TEST | {"dice": {"spleen": SPREAD, "liver": SPREAD}})
    refused(TestReport, TEST | {"surface_dice": {"liver": SPREAD}})


def test_a_report_cannot_be_changed():
    with pytest.raises(ValidationError, match="frozen"):
        Spread.model_validate(SPREAD).mean = 1.0


@pytest.mark.parametrize("kind", ["data", "memory", "disk", "configuration", "internal"])
def test_each_failure_is_one_sentence_with_what_to_do(kind):
    sentence = SiteFailure(kind=kind).sentence
    assert " - " in sentence and "\n" not in sentence and len(sentence) > 40
    assert re.search(r"log|lower|report", sentence.split(" - ")[1])


def test_the_sentences_of_all_failures_differ():
    kinds = ["data", "memory", "disk", "configuration", "internal"]
    assert len({SiteFailure(kind=kind).sentence for kind in kinds}) == len(kinds)


@pytest.mark.parametrize("kind", ["", "other", "/data/patient_7.nii.gz", None, 3])
def test_a_failure_says_nothing_but_one_of_its_kinds(kind):
    refused(SiteFailure, {"kind": kind})
    refused(SiteFailure, {"kind": "data", "text": "patient 7"})


def of_the_allocator():
    try:
        torch.empty(2**48, dtype=torch.float64)
    except RuntimeError as error:
        return error
    raise AssertionError("2 petabytes were free")


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (MemoryError(), "memory"),
        (torch.OutOfMemoryError("CUDA out of memory"), "memory"),
        (of_the_allocator(), "memory"),
        (torch.AcceleratorError("CUDA error: the launch timed out and was terminated"), "device"),
        (DataError("case 7"), "data"),
        (ConfigError("x"), "configuration"),
        (UsageError("x"), "configuration"),
        (FederationError("x"), "configuration"),
        (OSError(errno.ENOSPC, "No space left on device"), "disk"),
        (FileNotFoundError("/data/x"), "disk"),
        (PermissionError("/data/x"), "disk"),
        (SafetensorError("I/O error: No space left on device"), "disk"),
        (RuntimeError("shapes do not match"), "internal"),
        (ValueError("x"), "internal"),
        (KeyError("x"), "internal"),
        (AssertionError(), "internal"),
    ],
)
def test_an_exception_is_told_by_its_kind_alone(error, kind):
    failure = classify(error)
    assert failure == SiteFailure(kind=kind)
    assert failure.model_dump() == {"kind": kind}


def test_the_size_on_the_wire_is_that_of_the_values():
    assert payload_bytes({}) == 0
    assert payload_bytes({"a": torch.zeros(2, 3), "b": torch.zeros(5).half(), "c": torch.zeros(())}) == 24 + 10 + 4


def test_the_tasks_are_those_of_the_contract():
    assert TASKS == ("prepare", "train", "validate", "test", "propose", "score", "derive", "personalise")
