import math
import time

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from fl_app.config import Job, NetworkSettings, TrainingSettings
from fl_app.config_file import load_job, parse_job, reported_metrics, settings_table
from fl_app.errors import ConfigError


def mistakes(text, **arguments):
    """The lines of the message about a wrong job."""
    with pytest.raises(ConfigError) as caught:
        parse_job(text, **arguments)
    return str(caught.value).splitlines()


def mistake(text, **arguments):
    lines = mistakes(text, **arguments)
    assert len(lines) == 1, lines
    return lines[0]


MANY = """\
name: Spleen 2
data:
  labels: {}
  spacing_mm: [1.5, 1.5]
  window_hu: [240, -160]
  patch_voxels: [100, 96, 96]
  test_fraction: 1.5
network:
  name: unett
training:
  optimiser: adam
  loss: dice-ce
  batch_size: 0
  learning_rate: fast
  augmentation:
    nois: 0.1
    flip_probability: [0, 0, 2]
federation:
  best_metric: val_dise
  rounds: 2.5
colour: blue
"""


def test_every_mistake_is_reported_at_once_in_the_order_of_the_file(tmp_path):
    path = tmp_path / "my.yaml"
    path.write_text(MANY)
    with pytest.raises(ConfigError) as caught:
        load_job(path)
    training = "loss, optimizer, learning_rate, schedule, weight_decay, steps_per_round, batch_size, patch_share, "
    training += "least_patch_share, recompute, early_update, frozen_share, most_frozen_share, accumulate, "
    training += "foreground_share, precision, gradient_clip, deterministic, augmentation"
    networks = "unet, segresnet, dynunet, vnet, ahnet, unetr, swinunetr, dints"
    expected = [
        ":1 name: 'Spleen 2' - lower-case letters, digits, '-' and '_', at most 40, beginning with a letter or digit",
        ":3 data.labels: {...} - at least one organ, such as {spleen: 1}",
        ":4 data.spacing_mm: [1.5, 1.5] - a list of 3 values",
        ":5 data.window_hu: [240, -160] - [lower, upper] with lower < upper, such as [-160, 240]",
        ":7 data.test_fraction: 1.5 - less than 1.0",
        f":9 network.name: 'unett' - one of {networks} (did you mean unet?)",
        f":11 training.optimiser: unknown key - allowed here: {training} (did you mean optimizer?)",
        ":12 training.loss: 'dice-ce' - one of dice_ce, dice, dice_focal (did you mean dice_ce?)",
        ":13 training.batch_size: 0 - more than 0",
        ":14 training.learning_rate: 'fast' - a number",
        ":16 training.augmentation.nois: unknown key - allowed here: flip_probability, intensity_scale, "
        "intensity_shift, noise (did you mean noise?)",
        ":17 training.augmentation.flip_probability.2: 2 - 1.0 or less",
        ":19 federation.best_metric: 'val_dise' - a metric that the trainer reports: val_dice (did you mean val_dice?)",
        ":20 federation.rounds: 2.5 - a whole number",
        ":21 colour: unknown key - allowed here: name, seed, data, network, training, evaluation, federation, "
        "personal, search",
    ]
    assert str(caught.value).splitlines() == [f"{path}{line}" for line in expected]
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("training: 3", ":1 training: 3 - a section of key: value lines"),
        ("data:\n  labels: [1]", ":2 data.labels: [1] - a mapping of names to values"),
        ("data:\n  labels:\n    spleen: 0", ":3 data.labels.spleen: 0 - 1 or more"),
        ("data:\n  labels:\n    spleen: 70000", ":3 data.labels.spleen: 70000 - 65535 or less"),
        ("data:\n  labels:\n    spleen: 1.5", ":3 data.labels.spleen: 1.5 - a whole number"),
        ("data:\n  patch_voxels: 96", ":2 data.patch_voxels: 96 - a list"),
        ("data:\n  patch_voxels: []", ":2 data.patch_voxels: [] - a list of 3 values"),
        ("data:\n  patch_voxels: [96, 96, 96, 96]", ":2 data.patch_voxels: [96, 96, 96, 96] - a list of 3 values"),
        ("data:\n  patch_voxels:\n  - 96\n  - 0\n  - 96", ":4 data.patch_voxels.1: 0 - more than 0"),
        ("data:\n  spacing_mm: [0.1, 1, 1]", ":2 data.spacing_mm: [0.1, 1, 1] - three sizes between 0.2 and 20 mm"),
        ("data:\n  spacing_mm: [1, 1, 21]", ":2 data.spacing_mm: [1, 1, 21] - three sizes between 0.2 and 20 mm"),
        ("data:\n  reuse_cases: perhaps", ":2 data.reuse_cases: 'perhaps' - true or false"),
        ("network:\n  channels:\n  - 8\n  - many", ":4 network.channels.1: 'many' - a whole number"),
        ("network:\n  channels: [16]", ":2 network.channels: [16] - 2 to 7 levels"),
        ("network:\n  dropout: 1", ":2 network.dropout: 1 - less than 1.0"),
        ("training:\n  learning_rate: .nan", ":2 training.learning_rate: nan - a finite number"),
        ("training:\n  learning_rate: -.inf", ":2 training.learning_rate: -inf - a finite number"),
        ("training:\n  learning_rate: 0", ":2 training.learning_rate: 0 - more than 0.0"),
        ("training:\n  loss:", ":2 training.loss: None - one of dice_ce, dice, dice_focal"),
        ("federation:\n  grace_s: -1", ":2 federation.grace_s: -1 - 0 or more"),
        ("seed: -1", ":1 seed: -1 - 0 or more"),
        ("name: 7", ":1 name: 7 - a text"),
        ("name: 2020-01-01", ":1 name: datetime.date(2020, 1, 1) - a text"),
        ("\n\n# a comment\nname: ''", ":4 name: '' - lower-case letters, digits, '-' and '_', at most 40, beginning "),
        ("federation:\n  rounds: yes", ":2 federation.rounds: True - a number; YAML reads yes, no, on and off as true"),
        ("training:\n  learning_rate: off", ":2 training.learning_rate: False - a number; YAML reads yes, no, on"),
    ],
)
def test_a_mistake_is_named_with_its_line_its_value_and_what_is_allowed(text, expected):
    assert mistake(text).startswith("job" + expected)


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("fedration: {rounds: 3}", "federation"),
        ("training: {learning_rat: 0.1}", "learning_rate"),
        ("evaluation: {tolerance_mm: 3}", "surface_tolerance_mm"),
        ("training: {optimizer: adamm}", "adam"),
        ("training: {schedule: cosin}", "cosine"),
        ("federation: {algorithm: FedProx}", "fedprox"),
        ("network: {normalisation: instanc}", "instance"),
        ("federation: {best_metric: val_dice_splen}", "val_dice_spleen"),
    ],
)
def test_a_near_miss_brings_a_hint(text, meant):
    text += "\ndata: {labels: {spleen: 1, liver: 2}}" if "val_dice" in text else ""
    assert mistake(text).endswith(f"(did you mean {meant}?)")


def test_a_far_miss_brings_no_hint():
    assert "did you mean" not in mistake("xyzzy: 3")
    assert "did you mean" not in mistake("training: {loss: 7}")


def test_a_key_that_is_given_twice_is_reported_at_its_second_line_in_any_section():
    assert mistakes("seed: 1\ntraining:\n  batch_size: 1\n  batch_size: 2\nseed: 1\n") == [
        "job:4 training.batch_size: given twice - each key once",
        "job:5 seed: given twice - each key once",
    ]


def test_a_mistake_in_a_key_that_is_given_twice_is_reported_at_the_one_that_counts():
    assert mistakes("seed: 1\nname: a\nseed: -1\n") == [
        "job:3 seed: -1 - 0 or more",
        "job:3 seed: given twice - each key once",
    ]


@pytest.mark.parametrize(
    ("text", "line", "problem"),
    [
        ("name: a\ntraining: {loss: dice", ":2", "expected ',' or '}'"),
        ("name: a\n  seed: 3", ":2", "mapping values are not allowed here"),
        ("name: a\n\tseed: 3", ":2", "found character '\\t'"),
        ("name: !python x", ":1", "could not determine a constructor"),
        ("a: 1\n---\nb: 2", ":2", "another document"),
        ("name: *nobody", ":1", "undefined alias"),
        ("name: 2020-13-45", "", "month must be in 1..12"),
        ("name: \x00", "", "unacceptable character"),
        ("? [1, 2]\n: 3", ":1", "unhashable key"),
        ("name: !!bool perhaps", "", "not what its tag"),
        ("name: !!timestamp soon", "", "not what its tag"),
        ("seed: !!int ''", "", "not what its tag"),
        ("[" * 5000, "", "nested too deeply"),
    ],
)
def test_broken_yaml_is_one_sentence_with_the_line_where_there_is_one(text, line, problem):
    found = mistake(text, name="my.yaml")
    assert found.startswith(f"my.yaml{line}: not valid YAML: ")
    assert problem in found


@pytest.mark.parametrize("text", ["- 1\n- 2", "spleen", "3", "[]", "true"])
def test_a_file_that_is_not_made_of_sections_is_refused(text):
    assert "holds sections such as 'data:'" in mistake(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "# nothing\n",
        "---\n",
        "{}",
        "\ufeff",
        "data:\nnetwork:\ntraining:\nevaluation:\nfederation:\n",
        "training:\n  augmentation:\n    # noise: 0.1\n",
        "name:\nseed:\n",
    ],
)
def test_an_empty_file_and_empty_sections_mean_the_defaults(text):
    assert parse_job(text) == Job()


def test_the_defaults_written_out_are_a_valid_file_and_give_the_defaults():
    assert parse_job(yaml.safe_dump(Job().model_dump(mode="json"))) == Job()


def test_settings_are_read_from_a_file(tmp_path):
    path = tmp_path / "job.yaml"
    path.write_text(
        "name: café\n".replace("é", "e") + "training: {learning_rate: 1e-3}\ndata: {patch_voxels: [64, 32, 16]}"
    )
    job = load_job(path)
    assert (job.name, job.training.learning_rate, job.data.patch_voxels) == ("cafe", 0.001, (64, 32, 16))


def test_a_missing_file_a_folder_and_a_binary_file_are_named(tmp_path):
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    for name, said in [
        ("none.yaml", "there is no such job file"),
        ("", "cannot be read"),
        ("binary", "cannot be read"),
    ]:
        with pytest.raises(ConfigError, match=said) as caught:
            load_job(tmp_path / name)
        assert str(tmp_path / name) in str(caught.value)


def test_settings_cannot_be_changed_afterwards():
    with pytest.raises(ValueError, match="frozen"):
        Job().training.batch_size = 3


def test_overrides_replace_what_the_file_says_and_add_what_it_does_not_say():
    job = parse_job("federation: {rounds: 9}", overrides={("federation", "rounds"): 3, ("seed",): 5, ("name",): "x"})
    assert (job.federation.rounds, job.seed, job.name) == (3, 5, "x")
    job = parse_job("", overrides={("training", "augmentation", "noise"): 0.5})
    assert job.training.augmentation.noise == 0.5


def test_a_wrong_override_is_reported_like_a_mistake_in_the_file():
    assert mistake("", overrides={("federation", "rounds"): -1}) == "job:1 federation.rounds: -1 - 0 or more"
    assert mistake("\nfederation: 7", overrides={("federation", "rounds"): 3}).startswith(
        "job:2 federation: 7 - a section"
    )


def test_the_best_metric_is_one_of_those_that_the_labels_give():
    organs = "data: {labels: {spleen: 1, left kidney: 2}}\n"
    for metric in ("val_dice", "val_dice_spleen", "val_dice_left kidney"):
        assert parse_job(f"{organs}federation: {{best_metric: {metric}}}").federation.best_metric == metric
    reported = "val_dice, val_dice_spleen, val_dice_left kidney"
    assert f"reports: {reported}" in mistake(organs + "federation: {best_metric: val_dice_liver}")
    assert "reports: val_dice, val_dice_spleen" in mistake("federation: {best_metric: val_loss}")
    assert reported_metrics(["spleen", "left kidney"]) == tuple(reported.split(", "))


@pytest.mark.parametrize(
    ("network", "multiple"),
    [
        ({"channels": [4, 8]}, 2),
        ({"channels": [4, 8, 16]}, 4),
        ({}, 16),
        ({"channels": [1] * 7}, 64),
        ({"name": "segresnet"}, 8),
        ({"name": "segresnet", "channels": [4, 8]}, 8),
    ],
)
def test_each_side_of_a_patch_is_a_multiple_of_what_the_network_needs(network, multiple):
    def job(side):
        return yaml.safe_dump({"network": network, "data": {"patch_voxels": [multiple, side, 2 * multiple]}})

    assert NetworkSettings.model_validate(network).patch_multiples((8, 8, 8), (1, 1, 1)) == (multiple,) * 3
    assert parse_job(job(3 * multiple)).data.patch_voxels == (multiple, 3 * multiple, 2 * multiple)
    nearest = 8 if multiple == 2 else 3 * multiple
    found = mistake(job(3 * multiple + 1))
    assert f"multiples of {multiple} for this network (nearest: {[multiple, nearest, 2 * multiple]})" in found
    assert found.startswith("job:1 data.patch_voxels: ") or found.startswith("job:2 data.patch_voxels")


def test_default_patches_that_do_not_fit_a_network_are_reported_too():
    assert "data.patch_voxels" in mistake("network: {channels: [1, 1, 1, 1, 1, 1, 1]}")


def test_a_job_made_in_code_is_held_to_the_same_patch_rule():
    with pytest.raises(ValueError, match="multiples of 16"):
        Job.model_validate({"data": {"patch_voxels": [32, 32, 40]}})


@pytest.mark.parametrize(
    ("labels", "allowed"),
    [
        ("{spleen: 1, liver: 1}", "each organ its own value"),
        ("{background: 1}", "background is implied"),
        ("{1st: 1}", "organ names of letters"),
        ("{a.b: 1}", "organ names of letters"),
        ("{'': 1}", "organ names of letters"),
        ("{" + "a" * 65 + ": 1}", "organ names of letters"),
    ],
)
def test_labels_that_would_confuse_are_refused(labels, allowed):
    found = mistake(f"data:\n  labels: {labels}")
    assert found.startswith("job:2 data.labels: {...} - ")
    assert allowed in found


def test_labels_keep_the_order_of_the_file():
    assert list(parse_job("data: {labels: {spleen: 7, aorta: 2, Left-kidney_1: 65535}}").data.labels) == [
        "spleen",
        "aorta",
        "Left-kidney_1",
    ]


@pytest.mark.parametrize(("validation", "test"), [(0.5, 0.5), (0.9, 0.2), (0.81, None)])
def test_some_cases_must_remain_for_training(validation, test):
    text = f"data: {{validation_fraction: {validation}" + (f", test_fraction: {test}}}" if test else "}")
    assert "leave some cases for training" in mistake(text)


def leaves(section, prefix=()):
    for name in type(section).model_fields:
        value = getattr(section, name)
        if isinstance(value, BaseModel):
            yield from leaves(value, (*prefix, name))
        else:
            yield ".".join((*prefix, name)), value


def test_the_table_of_settings_names_every_setting_once_with_a_meaning():
    rows = settings_table(parse_job("training: {batch_size: 7}"))
    assert [row[0] for row in rows] == [name for name, _ in leaves(Job())]
    assert all(len(row) == 4 and row[3].strip() for row in rows)
    assert {row[0] for row in rows if row[1] != row[2]} == {"training.batch_size"}


def test_the_table_shows_values_as_they_are_written_in_a_file_and_the_choices():
    rows = {row[0]: row for row in settings_table(Job())}
    for name, value in leaves(Job()):
        shown = yaml.safe_load(rows[name][1])
        assert shown == (list(value) if isinstance(value, tuple) else value)
        assert rows[name][1] == rows[name][2]
    assert rows["training.loss"][3].startswith("one of dice_ce, dice, dice_focal. ")
    assert "mm" in rows["data.spacing_mm"][3] and "HU" in rows["data.window_hu"][3]


def test_a_yaml_bomb_is_refused_quickly():
    text = "a: &a [1, 2, 3, 4, 5, 6, 7, 8, 9]\n"
    for before, after in zip("abcdefghijk", "bcdefghijkl", strict=True):
        text += f"{after}: &{after} [{', '.join([f'*{before}'] * 9)}]\n"
    started = time.monotonic()
    found = mistakes(text + "data: {spacing_mm: *l}\nnetwork: {name: *l}\ntraining: *l\n")
    assert len(found) > 12 and max(map(len, found)) < 300
    assert time.monotonic() - started < 5


def test_a_bomb_of_mappings_is_refused_quickly():
    text = "a: &a {x: 1, y: 2}\n" + "".join(
        f"{after}: &{after} {{x: *{before}, y: *{before}, z: *{before}}}\n"
        for before, after in zip("abcdefghijklmnopqrst", "bcdefghijklmnopqrstu", strict=True)
    )
    started = time.monotonic()
    assert len(mistakes(text + "data: *u\n")) > 20
    assert time.monotonic() - started < 5


def test_a_number_of_thousands_of_digits_is_a_mistake_like_any_other():
    huge = "0x" + "f" * 6000
    assert mistake(f"seed: {huge}") == "job:1 seed: a huge number - 2147483648 or less"
    assert len(mistake(f"data: {{labels: {{? {huge} : 1}}}}")) < 300
    assert "not valid YAML" in mistake("seed: " + "9" * 6000)


def test_a_key_with_a_line_break_stays_in_one_line():
    assert mistake('"a\\nb": 1').startswith("job:1 'a\\nb': unknown key")


def reads_or_refuses(text):
    try:
        assert isinstance(parse_job(text), Job)
    except ConfigError as error:
        assert str(error)
        assert all(line.startswith("job:") for line in str(error).splitlines())


KEYS = [name for name, _ in leaves(Job())]
SCALARS = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.dates() | st.binary(max_size=4)
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.text(max_size=6) | st.integers() | st.sampled_from(["labels", "name", "loss"]), inner, max_size=4
        )
    ),
    max_leaves=8,
)


@given(st.text())
def test_any_text_is_a_job_or_a_mistake(text):
    reads_or_refuses(text)


@given(st.text(alphabet="abn:-?{}[]&*!|>'\"#%@,~<=. \n\t0123xe", max_size=60))
def test_any_text_of_yaml_signs_is_a_job_or_a_mistake(text):
    reads_or_refuses(text)
    reads_or_refuses("data:\n  labels: " + text)


@given(st.sampled_from(KEYS), VALUES)
def test_any_value_of_any_setting_is_a_job_or_a_mistake(key, value):
    for part in reversed(key.split(".")):
        value = {part: value}
    reads_or_refuses(yaml.safe_dump(value))


@given(st.dictionaries(st.sampled_from(["data", "network", "training", "federation", "name", "x"]), VALUES, max_size=4))
def test_any_sections_are_a_job_or_a_mistake(values):
    reads_or_refuses(yaml.safe_dump(values))


@given(st.floats())
def test_a_learning_rate_is_accepted_exactly_within_its_limits(rate):
    text = yaml.safe_dump({"training": {"learning_rate": rate}})
    if math.isfinite(rate) and 0 < rate <= 10:
        assert parse_job(text).training.learning_rate == rate
    else:
        assert "training.learning_rate" in mistake(text)


def test_the_smallest_settings_are_accepted():
    settings = TrainingSettings(steps_per_round=0, foreground_share=0, gradient_clip=0, weight_decay=0)
    assert settings.steps_per_round == 0
