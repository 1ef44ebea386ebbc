import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fl_app.data.cases import find_cases
from fl_app.errors import DataError
from tests.volumes import describe, touch

PAIR = {"image": "./imagesTr/a.nii.gz", "label": "./labelsTr/a.nii.gz"}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "3",
        "null",
        '"x"',
        "\xff",
        "[" * 100_000,
        '{"training": 3}',
        '{"training": {}}',
        '{"training": []}',
        '{"training": [3]}',
        '{"training": [{}]}',
        '{"training": [{"image": 3}]}',
        '{"training": [{"image": ""}]}',
        '{"training": [{"image": "a.nii", "label": []}]}',
        '{"training": [{"image": "a\\u0000.nii"}]}',
        '{"training": [{"image": "\\ud800.nii"}]}',
        '{"channel_names": 3}',
        '{"channel_names": {}, "file_ending": []}',
        '{"modality": 7, "training": []}',
    ],
)
def test_a_malformed_dataset_json_is_named(tmp_path, text):
    (tmp_path / "dataset.json").write_text(text, encoding="latin-1")
    with pytest.raises(DataError, match=r"dataset\.json"):
        find_cases(tmp_path)


@pytest.mark.parametrize("entry", ["../a.nii", "/etc/passwd", "imagesTr/../../a.nii", ".", "..", "a/../../b.nii"])
@pytest.mark.parametrize("key", ["image", "label"])
def test_entries_that_leave_the_folder_are_refused(tmp_path, entry, key):
    with pytest.raises(DataError, match=r"dataset\.json: entry 1 .* leaves the folder"):
        find_cases(describe(tmp_path, training=[{**PAIR, key: entry}]))


def test_an_entry_too_long_for_a_file_name_is_a_missing_image(tmp_path):
    describe(tmp_path, training=[{"image": "a" * 5000 + ".nii"}])
    assert [finding.code for finding in find_cases(tmp_path).problems] == ["missing-image"]


def test_dataset_json_may_begin_with_a_byte_order_mark(tmp_path):
    touch(tmp_path, "imagesTr/a.nii.gz", "labelsTr/a.nii.gz")
    (tmp_path / "dataset.json").write_text(json.dumps({"training": [PAIR]}), encoding="utf-8-sig")
    assert [case.name for case in find_cases(tmp_path).cases] == ["a"]


KEYS = st.sampled_from(["training", "test", "image", "label", "channel_names", "file_ending", "modality", "labels"])
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.sampled_from([".nii.gz", "a.nii"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS | st.text(max_size=5), inner, max_size=5),
    max_leaves=12,
)
ENTRIES = st.lists(st.fixed_dictionaries({"image": st.text() | JSON}, optional={"label": st.text() | JSON}))


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=JSON | st.dictionaries(KEYS, JSON, max_size=4) | st.fixed_dictionaries({"training": ENTRIES}))
def test_any_json_gives_cases_or_one_clear_error(tmp_path, content):
    (tmp_path / "dataset.json").write_text(json.dumps(content))
    try:
        assert all(tmp_path in case.image.parents for case in find_cases(tmp_path).cases)
    except DataError as error:
        assert "dataset.json" in str(error)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary(max_size=60))
def test_any_bytes_give_one_clear_error(tmp_path, content):
    (tmp_path / "dataset.json").write_bytes(content)
    with pytest.raises(DataError, match=r"dataset\.json"):
        find_cases(tmp_path)
