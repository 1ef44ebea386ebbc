"""The quickest way to compute is found by trying, changes nothing else, and is never wrong."""

import copy
import json

import pytest
import torch

from clients.work import SiteWork
from fl_app.config import Job
from fl_app.messages import PREPARE
from fl_app.networks.registry import build_network
from fl_app.site import SiteSettings
from fl_app.training.adapting import adapt_layers
from fl_app.training.objectives import build_loss
from fl_app.training.precision import MixedPrecision, choose_precision
from fl_app.training.replaying import may_replay
from fl_app.training.trainer import Trainer, ready_network
from fl_app.training.trial import Way, quickest_way, usual_way
from tests.test_training import gradients, needs_bf16, relative_error
from tests.volumes import write_decathlon

CPU = torch.device("cpu")
HAS_BF16 = choose_precision("auto", CPU) == "bf16"


def job(rounds=10, steps=200, name="unet", search=None, **training):
    network = {"name": name} | ({"channels": [4, 8, 16], "residual_units": 1} if name == "unet" else {})
    settings = {"batch_size": 1, "steps_per_round": steps} | training
    return Job.model_validate(
        {
            "data": {"patch_voxels": [16, 16, 16]},
            "network": network,
            "training": settings,
            "federation": {"rounds": rounds},
            "search": search or {},
        }
    )


def test_what_takes_least_is_chosen_and_everything_is_tried():
    wanted = job()
    way, tried = quickest_way(wanted, ready_network(wanted, CPU), CPU, None)
    layouts = ("channels last", "contiguous")
    precisions = ("bf16", "fp32") if HAS_BF16 else ("fp32",)
    assert set(tried) == {f"{precision}, {layout}" for precision in precisions for layout in layouts}
    assert tried[str(way)] == min(tried.values())


def test_a_precision_that_is_asked_for_is_kept():
    wanted = job(precision="fp32")
    way, tried = quickest_way(wanted, ready_network(wanted, CPU), CPU, None)
    assert way.precision == "fp32" and set(tried) == {"fp32, channels last", "fp32, contiguous"}


@pytest.mark.parametrize(
    ("wanted", "replayed"),
    [
        (job(), True),
        (job(name="dynunet"), True),
        (Job.model_validate({"network": {"name": "swinunetr"}}), False),
        (job(deterministic=True), False),
        (job(recompute=True), False),
        (job(early_update=True), False),
        (job(frozen_share=0.5), False),
        (job(accumulate=2), False),
    ],
    ids=str,
)
def test_a_gpu_replays_what_computes_the_same_kernels_at_each_step(wanted, replayed):
    assert may_replay(wanted, torch.device("cuda")) is replayed
    assert not may_replay(wanted, CPU)


@pytest.mark.parametrize(
    "wanted", [job(deterministic=True), job(rounds=9, steps=222), job(steps=0), job(search={"strategy": "sampling"})]
)
def test_deterministic_short_and_searching_jobs_compute_in_the_usual_way(wanted, tmp_path):
    way, tried = quickest_way(wanted, ready_network(wanted, CPU), CPU, tmp_path)
    assert (way, tried) == (usual_way(wanted, CPU), {}) and not list(tmp_path.iterdir())


def test_a_trial_leaves_the_network_and_the_random_stream_as_they_were():
    wanted = job()
    network = ready_network(wanted, CPU)
    before, stream = copy.deepcopy(network.state_dict()), torch.get_rng_state()
    quickest_way(wanted, network, CPU, None)
    assert torch.equal(torch.get_rng_state(), stream)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert all(value.grad is None for value in network.parameters())


def test_the_next_job_of_the_kind_takes_what_was_found(tmp_path):
    wanted = job()
    network = ready_network(wanted, CPU)
    quickest_way(wanted, network, CPU, tmp_path)
    (path,) = tmp_path.iterdir()
    held = json.loads(path.read_text())
    held[-1]["seconds"] = 1e-9
    path.write_text(json.dumps(held))
    way, _ = quickest_way(wanted, network, CPU, tmp_path)
    assert way == Way(held[-1]["precision"], held[-1]["channels_last"])
    path.write_text("damaged")
    assert len(quickest_way(wanted, network, CPU, tmp_path)[1]) == len(held)
    assert len(json.loads(path.read_text())) == len(held)
    quickest_way(job(batch_size=2), network, CPU, tmp_path)
    assert len(list(tmp_path.iterdir())) == 2


@needs_bf16
@pytest.mark.parametrize("layout", [True, False])
@pytest.mark.parametrize(("name", "precision"), [("unet", "bf16"), ("unet", "fp32"), ("dynunet", "bf16")])
def test_every_way_gives_fp32s_gradients_on_poisoned_memory(name, precision, layout):
    # many halvings: maps with a side of 2, where bf16 goes wrong without the guard
    settings = {"name": name} | ({"channels": [4, 8, 16, 16, 16], "residual_units": 1} if name == "unet" else {})
    wanted = Job.model_validate({"data": {"patch_voxels": [32, 32, 32]}, "network": settings})
    label = torch.zeros(1, 1, 32, 32, 32)
    label[:, :, 8:20, 10:22, 6:18] = 1
    image = torch.rand(1, 1, 32, 32, 32, generator=torch.Generator().manual_seed(3)) * 0.3 + label * 0.4
    loss = build_loss("dice_ce")
    network = adapt_layers(build_network(wanted))
    expected = gradients(network, image, False, lambda output: loss(output, label))
    way = Way(precision, layout)
    found = gradients(way.laid_out(network), image, precision == "bf16", lambda output: loss(output, label))
    assert all(bool(torch.isfinite(value).all()) for value in found.values())
    assert relative_error(found, expected) < (0.05 if precision == "bf16" else 1e-3)


def test_a_trainer_computes_in_the_way_that_it_is_given():
    wanted = job()
    for way in (Way("fp32", True), Way("fp32", False)):
        trainer = Trainer(wanted, [], CPU, "site", way=way)
        weights = next(value for value in trainer.network.parameters() if value.dim() == 5 and value.shape[1] > 1)
        assert weights.is_contiguous(memory_format=torch.channels_last_3d) == way.channels_last
        assert isinstance(trainer.precision, MixedPrecision) and trainer.precision.name == "fp32"


def test_what_a_site_found_lies_in_its_output_and_the_server_hears_of_the_precision(tmp_path):
    wanted = job()
    data = wanted.data.model_copy(update={"spacing_mm": (4.0, 4.0, 5.0), "reuse_cases": True})
    settings = SiteSettings(data=write_decathlon(tmp_path / "data"), output=tmp_path / "out")
    _, ready = SiteWork(wanted.model_copy(update={"data": data}), "site-1", settings).do(PREPARE, {}, {})
    found = json.loads((tmp_path / "out" / "training_steps.json").read_text())
    assert found["seconds"][found["chosen"]] == min(found["seconds"].values()), (
        "written seconds are rounded: there are ties"
    )
    assert found["chosen"].startswith(ready["precision"])
