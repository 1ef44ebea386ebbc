import json
import pickle
import resource

import pytest
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from fl_app.config_file import parse_job
from fl_app.errors import DataError
from fl_app.model_file import ModelInfo, load_model, save_model
from fl_app.networks.registry import build_network

JOB = parse_job(
    "name: two\ndata: {labels: {spleen: 3, liver: 1}, patch_voxels: [16, 16, 16]}\nnetwork: {channels: [2, 4]}"
)
VERSIONS = {"torch": "2", "fedspleen": "1"}


def info(number=3, metric=("val_dice", 0.875)):
    return ModelInfo(JOB, number, metric, VERSIONS)


def weights():
    return {"a.weight": torch.arange(24.0).reshape(2, 3, 4), "a.count": torch.tensor(7), "half": torch.ones(3).half()}


def same(first, second):
    return first.keys() == second.keys() and all(
        torch.equal(first[name], second[name]) and first[name].dtype == second[name].dtype for name in first
    )


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "model.safetensors"
    save_model(path, weights(), info())
    return path


def test_weights_come_back_as_they_were_to_the_bit(path):
    assert same(load_model(path)[0], weights())


def test_special_values_and_empty_tensors_come_back(tmp_path):
    values = {"x": torch.tensor([float("inf"), -0.0, 1e-45]), "none": torch.zeros(0, 3)}
    save_model(tmp_path / "m", values, info())
    read = load_model(tmp_path / "m")[0]
    assert same(read, values)
    assert read["x"][1].signbit()


@pytest.mark.parametrize("metric", [None, ("val_dice_liver", 0.123456789012345)])
@pytest.mark.parametrize("number", [0, 41])
def test_job_round_metric_and_versions_come_back(tmp_path, number, metric):
    save_model(tmp_path / "m", weights(), info(number, metric))
    assert load_model(tmp_path / "m")[1] == info(number, metric)


def test_the_order_of_the_organs_comes_back(path):
    assert list(load_model(path)[1].job.data.labels.items()) == [("spleen", 3), ("liver", 1)]


def test_other_programs_find_the_numbers_of_the_labels_in_the_metadata(path):
    with safe_open(path, framework="pt") as stream:
        described = json.loads(stream.metadata()["fedspleen"])
    assert described["labels"] == {"background": 0, "spleen": 1, "liver": 2}
    assert described["round"] == 3 and described["metric"] == ["val_dice", 0.875]


def test_a_network_can_be_built_and_filled_from_the_file_alone(tmp_path):
    network = build_network(JOB.model_copy(update={"seed": 9}))
    network.eval()
    save_model(tmp_path / "m", network.state_dict(), info())
    values, described = load_model(tmp_path / "m")
    again = build_network(described.job)
    again.load_state_dict(values)
    again.eval()
    image = torch.randn(1, 1, 16, 16, 16)
    assert torch.equal(again(image), network(image))


def test_tensors_in_another_memory_order_are_saved_by_their_values(tmp_path):
    values = {"w": torch.randn(2, 3, 4, 5, 6).to(memory_format=torch.channels_last_3d), "t": torch.randn(3, 4).T}
    save_model(tmp_path / "m", values, info())
    assert same(load_model(tmp_path / "m")[0], values)


def test_folders_are_made_and_no_temporary_file_remains(tmp_path):
    path = tmp_path / "a" / "b" / "model.safetensors"
    save_model(path, weights(), info(1))
    save_model(path, weights(), info(2))
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    assert load_model(path)[1].round == 2


@pytest.mark.parametrize("content", [{"a": 3}, {"a": torch.ones(2, 2).to_sparse()}, {3: torch.ones(2)}])
def test_a_write_that_fails_leaves_the_previous_file_and_nothing_else(path, content):
    before = path.read_bytes()
    with pytest.raises((TypeError, ValueError, AttributeError, RuntimeError)):
        save_model(path, content, info())
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def test_a_full_disk_leaves_the_previous_file_and_nothing_else(path):
    before = path.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises((OSError, SafetensorError)):
            save_model(path, {"w": torch.ones(200_000)}, info())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"",
        lambda content: content[:5],
        lambda content: content[:40],
        lambda content: content[: len(content) // 2],
        lambda content: content[:-1],
        lambda content: content + b"\0",
        lambda content: b"\xff" * 8 + content[8:],
        lambda content: content[:8] + b"x" + content[9:],
        lambda content: content.replace(b"fedspleen", b"fedliverx", 1),
        lambda content: content.replace(b"labels", b"lapels"),
        lambda content: content.replace(b"dice_ce", b"dice_xx"),
        lambda content: content.replace(b"unet", b"wnet"),
        lambda content: content.replace(b'\\"round\\": 3', b'\\"round\\": x'),
        lambda content: content.replace(b'\\"versions\\"', b'\\"Versions\\"'),
        lambda content: pickle.dumps({"weights": [1, 2, 3]}),
        lambda content: b"PK\x03\x04" + content,
        lambda content: b"<html>not found</html>",
    ],
)
def test_a_damaged_or_foreign_file_is_refused_in_one_sentence(path, damage):
    damaged = damage(path.read_bytes())
    assert damaged != path.read_bytes()
    path.write_bytes(damaged)
    with pytest.raises(DataError) as caught:
        load_model(path)
    assert str(caught.value).startswith(f"{path}: not a model that fedspleen wrote, or damaged: ")
    assert caught.value.exit_code == 1


def test_a_pickle_is_refused_without_running_it(tmp_path):
    witness = tmp_path / "witness"

    class Trap:
        def __reduce__(self):
            return (witness.write_text, ("ran",))

    (tmp_path / "m").write_bytes(pickle.dumps(Trap()))
    torch.save({"w": torch.ones(2)}, tmp_path / "t")
    for name in ("m", "t"):
        with pytest.raises(DataError):
            load_model(tmp_path / name)
    assert not witness.exists()


@pytest.mark.parametrize(
    "described",
    [
        "[]",
        "3",
        "null",
        '"x"',
        "{}",
        '{"metric": null}',
        "not json",
        "[" * 100_000,
        '{"job": {}, "round": [], "metric": null}',
    ],
)
def test_metadata_that_is_no_description_is_refused(tmp_path, described):
    save_file({"w": torch.ones(2)}, tmp_path / "m", {"fedspleen": described})
    with pytest.raises(DataError, match="not a model that fedspleen wrote"):
        load_model(tmp_path / "m")


@pytest.mark.parametrize("metric", ["x", {"a": 1}, ["val_dice"], ["val_dice", "high"], 3])
def test_a_metric_that_is_no_name_and_value_is_refused(path, metric):
    with safe_open(path, framework="pt") as stream:
        described = json.loads(stream.metadata()["fedspleen"]) | {"metric": metric}
    save_file({"w": torch.ones(2)}, path, {"fedspleen": json.dumps(described)})
    with pytest.raises(DataError):
        load_model(path)


def described_with(path, section, key):
    """A file that says one thing more of its job."""
    with safe_open(path, framework="pt") as stream:
        described = json.loads(stream.metadata()["fedspleen"])
    described["job"][section][key] = 4
    save_file(weights(), path, {"fedspleen": json.dumps(described)})


@pytest.mark.parametrize("section", ["training", "federation", "personal"])
def test_a_model_of_another_version_is_read_though_its_training_had_a_setting_that_is_gone(path, section):
    described_with(path, section, "setting_of_another_version")
    assert load_model(path)[1] == info() and same(load_model(path)[0], weights())


@pytest.mark.parametrize("section", ["data", "network", "search"])
def test_a_model_is_refused_if_what_it_computes_depends_on_a_setting_that_is_unknown(path, section):
    described_with(path, section, "setting_of_another_version")
    with pytest.raises(DataError, match="setting_of_another_version"):
        load_model(path)


def test_a_safetensors_file_of_someone_else_is_refused(tmp_path):
    save_file({"w": torch.ones(2)}, tmp_path / "m")
    with pytest.raises(DataError, match="not a model that fedspleen wrote"):
        load_model(tmp_path / "m")


def test_a_missing_file_and_a_folder_are_named(tmp_path):
    with pytest.raises(DataError, match="there is no such model file"):
        load_model(tmp_path / "m")
    with pytest.raises(DataError, match=str(tmp_path)):
        load_model(tmp_path)
