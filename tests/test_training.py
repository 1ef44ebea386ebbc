import copy
import csv
import dataclasses
import math
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import nibabel
import numpy as np
import pytest
import torch
from monai.metrics import compute_surface_dice
from monai.optimizers.novograd import Novograd
from torch import nn

from fl_app.config import AugmentationSettings, DataSettings, Job, NetworkSettings, TrainingSettings
from fl_app.data.cases import Case
from fl_app.data.preparation import PreparedCase, load_label, prepare_cases
from fl_app.data.sampling import PatchSampler
from fl_app.data.site_data import SiteData
from fl_app.errors import ConfigError, DataError, TrainingError
from fl_app.networks.registry import build_network, exchanged_names
from fl_app.training.adapting import adapt_layers
from fl_app.training.device import choose_device
from fl_app.training.evaluation import predict, score_native, score_prepared, to_native_grid
from fl_app.training.metrics import CaseScore, Summary, dice, surface_dice
from fl_app.training.novograd import ForeachNovograd
from fl_app.training.objectives import build_loss, build_optimizer, learning_rate, moved_state
from fl_app.training.precision import MixedPrecision, choose_precision
from fl_app.training.randomness import start_stream, stream_seed
from fl_app.training.recompute import recompute
from fl_app.training.reporting import test_report as report_of_test
from fl_app.training.reporting import validation_report, write_case_scores
from fl_app.training.trainer import Trainer
from tests.bf16 import HAS_BF16, needs_bf16, poison
from tests.volumes import AFFINE, SPACING_MM, make_ct, write_nifti

torch.set_num_threads(1)

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _deterministic_mode_ends_with_the_test():
    yield
    torch.use_deterministic_algorithms(False)


def tiny_job(seed=0, **sections):
    base = {
        "data": {"spacing_mm": SPACING_MM, "patch_voxels": (16, 16, 16)},
        "network": {"channels": (4, 8), "residual_units": 1},
        "training": {"learning_rate": 0.01, "steps_per_round": 10},
        "federation": {},
    }
    return Job.model_validate({"seed": seed} | {name: base[name] | sections.get(name, {}) for name in base})


def write(folder, image, label, affine=AFFINE, name="case"):
    return Case(
        name,
        write_nifti(folder / f"{name}_ct.nii.gz", image, affine),
        write_nifti(folder / f"{name}_label.nii.gz", label, affine),
    )


def prepare(case, cache=None, **settings):
    chosen = DataSettings.model_validate({"spacing_mm": SPACING_MM} | settings)
    return prepare_cases([case], chosen, cache)[0]


@pytest.fixture(scope="module")
def cases(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cases")
    return [prepare(write(folder, *make_ct(seed), name=f"case_{seed}")) for seed in range(2)]


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


# the guard against wrong bf16 gradients


def gradients(network, image, mixed, objective):
    """Gradients of an objective by name, computed on poisoned memory."""
    network.zero_grad()
    poison()
    with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
        output = network(image)
    objective(output.float()).backward()
    return {name: value.grad.clone() for name, value in network.named_parameters()}


def relative_error(found, wanted):
    found, wanted = (torch.cat([each[name].flatten() for name in wanted]) for each in (found, wanted))
    return float((found - wanted).norm() / wanted.norm())


@needs_bf16
@pytest.mark.parametrize("other_sides", [(2, 2), (4, 6)])
@pytest.mark.parametrize(("kernel", "side"), [(3, 1), (3, 2), (3, 3), (5, 2), (5, 3), (5, 4), (5, 5), (1, 1), (1, 2)])
def test_bf16_gradients_of_small_maps_are_right_under_the_guard(kernel, side, other_sides):
    torch.manual_seed(kernel * side)
    network = nn.Sequential(nn.Conv3d(16, 16, kernel, padding=kernel // 2))
    image = torch.randn(2, 16, side, *other_sides)
    weights = torch.randn(2, 16, side, *other_sides)
    wanted = gradients(network, image, False, lambda output: (output * weights).sum())
    adapt_layers(network)
    for _ in range(2):
        found = gradients(network, image, True, lambda output: (output * weights).sum())
        assert all(bool(torch.isfinite(value).all()) for value in found.values())
        assert relative_error(found, wanted) < 0.02


@needs_bf16
@pytest.mark.parametrize("last_side", [32, 16])  # the innermost maps have two voxels or one
@pytest.mark.parametrize(
    ("normalisation", "again"), [("instance", False), ("instance", True), ("batch", False), ("group", False)]
)
def test_a_network_that_halves_four_times_trains_rightly_on_a_small_patch(normalisation, last_side, again):
    settings = NetworkSettings(channels=(4, 8, 16, 16, 16), residual_units=1, normalisation=normalisation)
    network = adapt_layers(build_network(Job(network=settings))).to(memory_format=torch.channels_last_3d)
    if again:
        recompute(network)
    label = torch.zeros(2, 1, 32, 48, last_side)
    label[:, :, 8:20, 10:22, 3:12] = 1
    image = torch.rand(label.shape, generator=torch.Generator().manual_seed(3)) * 0.3 + label * 0.4
    loss = build_loss("dice_ce")
    wanted = gradients(network, image, False, lambda output: loss(output, label))
    found = gradients(network, image, True, lambda output: loss(output, label))
    assert all(bool(torch.isfinite(value).all()) for value in found.values())
    assert relative_error(found, wanted) < 0.04
    # the deeper a layer, the more bf16 roundings lie behind it; an unguarded innermost layer is 100 % wrong
    layers = [name for name in wanted if name.endswith("conv.weight")]
    assert len(layers) > 8
    assert max(relative_error({name: found[name]}, {name: wanted[name]}) for name in layers) < 0.45


@pytest.mark.parametrize("name", ["unet", "segresnet"])
def test_adapting_changes_neither_names_nor_weights_nor_results(name):
    settings = NetworkSettings(name=name, channels=(8, 16))
    plain, adapted = (build_network(Job(network=settings, seed=4)).eval() for _ in range(2))
    adapt_layers(adapted)
    assert list(plain.state_dict()) == list(adapted.state_dict())
    assert same(plain.state_dict(), adapted.state_dict())
    image = torch.rand(1, 1, 16, 16, 16)
    torch.testing.assert_close(adapted(image), plain(image), rtol=1e-5, atol=1e-5)


def test_a_guarded_network_takes_the_weights_of_an_unguarded_one():
    plain, guarded = (build_network(Job(seed=seed)) for seed in (1, 2))
    adapt_layers(guarded).load_state_dict(plain.state_dict())
    assert same(plain.state_dict(), guarded.state_dict())


@pytest.mark.parametrize("kind", [torch.float32, pytest.param(torch.bfloat16, marks=needs_bf16)])
@pytest.mark.parametrize("slope", [0.25, -0.5, 0.0])
def test_the_quick_activation_and_its_gradients_are_torchs(kind, slope):
    plain, quick = (nn.PReLU(init=slope).train() for _ in range(2))
    adapt_layers(quick)
    values = torch.randn(2, 3, 8, 8, 8, generator=torch.Generator().manual_seed(1)).to(kind)
    found = []
    for layer in (plain, quick):
        features = values.clone().requires_grad_()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=kind == torch.bfloat16):
            result = layer(features)
        result.backward(torch.ones_like(result) * 0.5)
        found.append((result.detach(), features.grad, layer.weight.grad))
    tolerance = {"rtol": 1e-5, "atol": 1e-5} if kind == torch.float32 else {"rtol": 0.02, "atol": 1e-3}
    for one, other in zip(*found, strict=True):
        assert one.dtype == other.dtype
        torch.testing.assert_close(one, other, **tolerance)


def test_the_quick_activation_predicts_and_is_traced_as_torchs():
    plain, quick = (nn.PReLU(init=0.3).eval() for _ in range(2))
    image = torch.randn(1, 3, 4, 4, 4)
    with torch.no_grad():
        torch.testing.assert_close(adapt_layers(quick)(image), plain(image))
        assert "aten::prelu" in str(torch.jit.trace(quick, image).inlined_graph)


def with_gradients(layer, image, kind):
    """What a layer makes of an image, and all gradients, in fp32 or under autocast."""
    layer.zero_grad()
    features = image.to(kind).requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=kind == torch.bfloat16):
        result = layer(features)
    result.backward(torch.randn(result.shape, generator=torch.Generator().manual_seed(2)).to(result.dtype))
    return [result.detach(), features.grad, *(value.grad for value in layer.parameters())]


QUICK_LAYERS = {
    "doubling to 1 channel": (nn.ConvTranspose3d(6, 1, 3, 2, 1, 1), 6),
    "doubling to 4 channels, no bias": (nn.ConvTranspose3d(3, 4, 3, 2, 1, 1, bias=False), 3),
    "doubling to 5 channels": (nn.ConvTranspose3d(3, 5, 3, 2, 1, 1), 3),
    "another kernel": (nn.ConvTranspose3d(3, 2, 2, 2), 3),
    "normalising 2 channels": (nn.InstanceNorm3d(2, affine=True), 2),
    "normalising 16 channels": (nn.InstanceNorm3d(16, affine=True), 16),
    "normalising 24 channels, no weights": (nn.InstanceNorm3d(24), 24),
    "a convolution to 2 channels": (nn.Conv3d(2, 2, 3, padding=1), 2),
}


@pytest.mark.parametrize("kind", [torch.float32, pytest.param(torch.bfloat16, marks=needs_bf16)])
@pytest.mark.parametrize("layouts", [("last", "last"), ("last", "contiguous"), ("contiguous", "contiguous")])
@pytest.mark.parametrize("patches", [1, 2])
@pytest.mark.parametrize("name", QUICK_LAYERS)
def test_quick_layers_and_their_gradients_are_torchs(name, patches, layouts, kind):
    layer, channels = QUICK_LAYERS[name]
    plain, quick = copy.deepcopy(layer), adapt_layers(copy.deepcopy(layer))
    of_weights, of_image = (
        torch.channels_last_3d if layout == "last" else torch.contiguous_format for layout in layouts
    )
    image = torch.randn(patches, channels, 8, 5, 6, generator=torch.Generator().manual_seed(1))
    image = image.contiguous(memory_format=of_image)
    quick.to(memory_format=of_weights)
    tolerance = {"rtol": 1e-4, "atol": 1e-5} if kind == torch.float32 else {"rtol": 0.02, "atol": 0.02}
    for found, wanted in zip(with_gradients(quick, image, kind), with_gradients(plain, image, kind), strict=True):
        assert found.dtype == wanted.dtype and found.shape == wanted.shape
        assert relative_error({"": found}, {"": wanted}) < (1e-5 if kind == torch.float32 else 0.01)
        torch.testing.assert_close(found, wanted, **tolerance)


def test_a_transposed_convolution_is_traced_as_torchs():
    plain, quick = (copy.deepcopy(QUICK_LAYERS["doubling to 1 channel"][0]).eval() for _ in range(2))
    image = torch.randn(1, 6, 4, 4, 4)
    torch.testing.assert_close(adapt_layers(quick)(image), plain(image))
    assert "einsum" not in str(torch.jit.trace(quick, image).inlined_graph)


@pytest.mark.parametrize("kind", ["conv", "transposed"])
def test_small_maps_are_computed_in_fp32_with_weights_that_are_held_in_bf16(kind):
    """As those are that a site with little memory does not train."""
    torch.manual_seed(0)
    plain = nn.Conv3d(8, 20, 3, padding=1) if kind == "conv" else nn.ConvTranspose3d(8, 20, 3, 2, 1, 1)
    held = adapt_layers(copy.deepcopy(plain)).bfloat16()
    images = torch.randn(1, 8, 2, 2, 2)
    with torch.autocast("cpu", torch.bfloat16):
        found = held(images.clone().requires_grad_())
    torch.testing.assert_close(found, plain.bfloat16().float()(images))


def test_an_activation_with_a_slope_for_each_channel_stays_torchs():
    plain, adapted = (nn.PReLU(3).train() for _ in range(2))
    image = torch.randn(1, 3, 4, 4, 4)
    assert torch.equal(adapt_layers(adapted)(image), plain(image))


# randomness


def trained(job, cases, stream="site-1", rounds=(1,), steps=3):
    trainer = Trainer(job, cases, CPU, stream)
    for number in rounds:
        trainer.train(number, steps, 4)
    return trainer.all_values()


@pytest.mark.parametrize("precision", ["fp32", pytest.param("bf16", marks=needs_bf16)])
@pytest.mark.parametrize("network", [{}, {"dropout": 0.2}, {"name": "segresnet", "residual_units": None}])
def test_the_same_job_gives_the_same_weights_to_the_bit(cases, network, precision):
    training = {"deterministic": True, "precision": precision, "augmentation": {"noise": 0.1}}
    job = tiny_job(network=network, training=training)
    first = trained(job, cases, rounds=(1, 2), steps=2)
    torch.rand(7)  # what else draws numbers in this process does not matter
    assert same(trained(job, cases, rounds=(1, 2), steps=2), first)


def test_another_site_round_or_seed_sees_other_patches(cases):
    sampler = PatchSampler(cases, (8, 8, 8), 0.5, AugmentationSettings())

    def images(*names):
        return sampler.draw(4, start_stream(*names))[0]

    first = images(0, "site-1", 1)
    assert torch.equal(images(0, "site-1", 1), first)
    for other in [(0, "site-2", 1), (0, "site-1", 2), (1, "site-1", 1)]:
        assert not torch.equal(images(*other), first)


def test_another_site_or_round_trains_differently(cases):
    job = tiny_job(training={"schedule": "constant"})
    first = trained(job, cases)
    assert not same(trained(job, cases, stream="site-2"), first)
    assert not same(trained(job, cases, rounds=(2,)), first)


def test_streams_are_the_same_on_every_machine_and_differ_by_every_name():
    assert stream_seed(0, "site-1", 1) == 4123419023009251269
    seeds = {stream_seed(seed, site, number) for seed in range(5) for site in "abc" for number in range(20)}
    assert len(seeds) == 300 and all(0 <= seed < 2**63 for seed in seeds)


@pytest.mark.parametrize("name", ["unet", "segresnet"])
def test_the_first_weights_depend_on_the_seed_alone(name):
    settings = NetworkSettings(name=name, channels=(8, 16))
    first = build_network(Job(network=settings, seed=3)).state_dict()
    torch.manual_seed(99)
    before = torch.random.get_rng_state()
    assert same(build_network(Job(network=settings, seed=3)).state_dict(), first)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert not same(build_network(Job(network=settings, seed=4)).state_dict(), first)


def test_every_site_begins_with_the_same_weights(cases):
    job = tiny_job(seed=5)
    first, second = (Trainer(job, some, CPU, site) for some, site in [(cases, "a"), ([], "b")])
    assert same(first.all_values(), second.all_values())


# learning


def test_some_training_raises_dice_well_above_the_start(cases):
    job = tiny_job(network={"channels": (8, 16)}, training={"optimizer": "adam", "batch_size": 4})
    trainer = Trainer(job, cases, CPU, "site-1")

    def mean_dice():
        return Summary.of(score.dice["spleen"] for score in trainer.score(cases)).mean

    start = mean_dice()
    trainer.train(1, 50, 1)
    assert start < 0.3
    assert mean_dice() > 0.8


@pytest.mark.parametrize(
    "training",
    [
        *({"optimizer": name} for name in ("novograd", "adam", "adamw", "sgd")),
        *({"loss": name} for name in ("dice_ce", "dice", "dice_focal")),
        *({"schedule": name} for name in ("constant", "cosine", "polynomial")),
        {"weight_decay": 0.01, "optimizer": "adamw"},
        {"gradient_clip": 0},
        {"precision": "fp32"},
    ],
    ids=str,
)
def test_every_way_of_training_lowers_the_loss(cases, training):
    trainer = Trainer(tiny_job(training=training), cases, CPU, "site-1")
    losses = [trainer.train(number, 8, 4).loss for number in (1, 2, 3, 4)]
    assert losses[3] < losses[0]


@pytest.mark.parametrize(
    "network", [{"normalisation": "batch"}, {"normalisation": "group"}, {"name": "segresnet", "residual_units": None}]
)
def test_every_network_lowers_the_loss(cases, network):
    job = tiny_job(network={"channels": (8, 16)} | network)
    trainer = Trainer(job, cases, CPU, "site-1")
    assert trainer.train(2, 6, 2).loss > trainer.train(2, 6, 2).loss


@pytest.mark.parametrize(
    ("schedule", "half", "end"), [("constant", 0.4, 0.4), ("cosine", 0.2, 0.0), ("polynomial", 0.4 * 0.5**0.9, 0.0)]
)
def test_the_learning_rate_falls_as_its_schedule_says(schedule, half, end):
    settings = TrainingSettings(learning_rate=0.4, schedule=schedule)
    assert learning_rate(settings, 0.0) == pytest.approx(0.4)
    assert learning_rate(settings, 0.5) == pytest.approx(half)
    assert learning_rate(settings, 1.0) == pytest.approx(end)
    rates = [learning_rate(settings, step / 100) for step in range(101)]
    assert rates == sorted(rates, reverse=True)


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_weights_moved_together_are_moved_as_monais_novograd_does(decay):
    torch.manual_seed(0)
    start = nn.Sequential(nn.Conv3d(7, 9, 3), nn.PReLU(), nn.Conv3d(9, 2, 1))
    one, other = (copy.deepcopy(start) for _ in range(2))
    optimizers = (
        Novograd(one.parameters(), lr=0.01, weight_decay=decay),
        ForeachNovograd(other.parameters(), lr=0.01, weight_decay=decay, foreach=True),
    )
    for number in range(5):
        upstream = [torch.randn_like(each) for each in start.parameters()]
        for network, optimizer in zip((one, other), optimizers, strict=True):
            for weight, gradient in zip(network.parameters(), upstream, strict=True):
                weight.grad = gradient.clone()
            if number < 2:  # what has no gradient stays
                network[2].bias.grad = None
            optimizer.step()
    for weight, moved in zip(one.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(moved, weight, rtol=1e-6, atol=1e-6)
    for state, same_state in zip(*(each.state_dict()["state"].values() for each in optimizers), strict=True):
        assert state["step"] == same_state["step"]
        torch.testing.assert_close(same_state["exp_avg"], state["exp_avg"])
        torch.testing.assert_close(same_state["exp_avg_sq"], state["exp_avg_sq"])


def test_all_that_an_optimiser_remembers_goes_where_the_network_goes():
    weight = nn.Parameter(torch.ones(3))
    weight.grad = torch.ones(3)
    elsewhere = torch.device("meta")
    for kind in (Novograd, ForeachNovograd, torch.optim.Adam):
        optimizer = kind([weight], lr=0.1)
        optimizer.step()
        moved = moved_state(optimizer.state[weight], elsewhere)
        places = {name: value.device for name, value in moved.items() if isinstance(value, torch.Tensor)}
        assert set(places) - {"step"} and all(place == elsewhere for name, place in places.items() if name != "step")
        assert places.get("step", CPU) == CPU, "torch's Adam counts on the CPU"


@pytest.mark.parametrize(
    ("name", "kind"), [("novograd", "ForeachNovograd"), ("adam", "Adam"), ("adamw", "AdamW"), ("sgd", "SGD")]
)
def test_an_optimizer_is_what_it_is_called_and_holds_every_weight(name, kind):
    network = build_network(Job(network={"channels": (2, 4)}))
    settings = TrainingSettings(optimizer=name, learning_rate=0.3, weight_decay=0.2)
    optimizer = build_optimizer(settings, network)
    assert type(optimizer).__name__ == kind
    assert [len(group["params"]) for group in optimizer.param_groups] == [len(list(network.parameters()))]
    assert (optimizer.param_groups[0]["lr"], optimizer.param_groups[0]["weight_decay"]) == (0.3, 0.2)


@pytest.mark.parametrize("name", ["dice_ce", "dice", "dice_focal"])
def test_a_loss_is_least_for_the_right_answer(name):
    loss, label = build_loss(name), torch.zeros(2, 1, 4, 4, 4, dtype=torch.uint8)
    label[0, 0, :2], label[1, 0, 3] = 1, 2
    right = nn.functional.one_hot(label[:, 0].long(), 3).movedim(-1, 1) * 40.0 - 20
    assert float(loss(right, label)) == pytest.approx(0, abs=1e-3)
    assert float(loss(torch.zeros_like(right), label)) > 0.2
    assert float(loss(-right, label)) > float(loss(torch.zeros_like(right), label))


@pytest.mark.parametrize("name", ["dice_ce", "dice", "dice_focal"])
def test_a_small_organ_that_is_missed_costs_as_much_as_a_large_one(name):
    label = torch.zeros(1, 1, 8, 8, 8, dtype=torch.uint8)
    label[0, 0, 0, 0, :2] = 1
    background = torch.stack([torch.full((1, 8, 8, 8), 20.0), torch.full((1, 8, 8, 8), -20.0)], 1)
    assert float(build_loss(name)(background, label)) > 0.95


def test_the_rate_falls_over_the_rounds_of_the_whole_job(cases):
    moved = []
    for number in (1, 50, 100):
        trainer = Trainer(tiny_job(training={"optimizer": "sgd", "precision": "fp32"}), cases, CPU, "a")
        start = trainer.all_values()
        trainer.train(number, 1, 100)
        moved.append(max(float((value - start[name]).abs().max()) for name, value in trainer.all_values().items()))
    assert moved[0] > moved[1] > 20 * moved[2] > 0


def test_a_patch_without_the_organ_gives_a_finite_loss_and_gradient(cases):
    empty = [dataclasses.replace(case, label=torch.zeros_like(case.label)) for case in cases]
    steps = Trainer(tiny_job(), empty, CPU, "site-1").train(1, 3, 1)
    assert math.isfinite(steps.loss)


def test_gradients_are_clipped_at_their_norm():
    network = nn.Linear(10, 1, bias=False)
    optimizer = torch.optim.SGD(network.parameters(), lr=1.0)
    for clip, moved in [(0.5, 0.5), (0, None)]:
        before = network.weight.detach().clone()
        optimizer.zero_grad()
        MixedPrecision("fp32", CPU).step(network(torch.full((1, 10), 100.0)).sum(), network, optimizer, clip)
        distance = float((network.weight.detach() - before).norm())
        assert distance == pytest.approx(moved or 100 * math.sqrt(10), rel=1e-4)


def distance_from_start(cases, **federation):
    job = tiny_job(training={"optimizer": "sgd", "precision": "fp32"}, federation=federation)
    trainer = Trainer(job, cases, CPU, "site-1")
    start = trainer.all_values()
    trainer.train(1, 20, 1)
    return math.sqrt(sum(float(((value - start[name]) ** 2).sum()) for name, value in trainer.all_values().items()))


def test_fedprox_pulls_towards_the_start_the_more_the_larger_mu(cases):
    distances = [distance_from_start(cases, algorithm="fedprox", proximal_mu=mu) for mu in (0, 5, 50)]
    assert distances[0] > 1.1 * distances[1] > 1.1**2 * distances[2] > 0
    assert distances[0] == distance_from_start(cases)
    assert distance_from_start(cases, algorithm="fedavg", proximal_mu=10) == distances[0]


def test_the_reported_loss_is_without_the_pull(cases):
    losses = []
    for mu in (0.0, 1e-6):
        job = tiny_job(federation={"algorithm": "fedprox", "proximal_mu": mu}, training={"precision": "fp32"})
        losses.append(Trainer(job, cases, CPU, "a").train(1, 2, 1).loss)
    assert losses[0] == pytest.approx(losses[1], abs=1e-4)


def test_no_steps_give_no_loss_and_leave_the_weights(cases):
    for some in (cases, []):
        trainer = Trainer(tiny_job(), some, CPU, "site-1")
        before = trainer.all_values()
        steps = trainer.train(1, 0, 3)
        assert math.isnan(steps.loss) and steps.steps == 0
        assert same(trainer.all_values(), before)


def test_steps_without_cases_are_refused():
    with pytest.raises(DataError, match="there are no training cases"):
        Trainer(tiny_job(), [], CPU, "site-1").train(1, 1, 1)


def test_a_loss_that_is_no_number_is_an_error_that_says_what_to_do(cases):
    broken = [dataclasses.replace(case, image=case.image * math.nan) for case in cases]
    with pytest.raises(TrainingError, match=r"no longer a number in round 7 - lower training.learning_rate"):
        Trainer(tiny_job(), broken, CPU, "site-1").train(7, 2, 9)


def test_steps_are_counted_and_timed(cases):
    steps = Trainer(tiny_job(), cases, CPU, "site-1").train(1, 2, 1)
    assert steps.steps == 2 and 0 < steps.seconds < 60 and steps.loss > 0


# what travels

NORMALISATIONS = ["instance", "batch", "group"]


@pytest.mark.parametrize("name", ["unet", "segresnet"])
@pytest.mark.parametrize("normalisation", NORMALISATIONS)
def test_all_weights_and_statistics_travel_but_no_counters(name, normalisation):
    network = build_network(Job(network={"name": name, "channels": (8, 16), "normalisation": normalisation}))
    state = network.state_dict()
    names = exchanged_names(network, "average")
    assert list(names) == sorted(names)
    assert {each for each in state if each not in names} == {each for each in state if "num_batches" in each}
    assert {each for each, _ in network.named_parameters()} <= set(names)
    assert any("running_mean" in each for each in names) == (normalisation == "batch")


@pytest.mark.parametrize("name", ["unet", "segresnet"])
@pytest.mark.parametrize("normalisation", NORMALISATIONS)
def test_local_normalisation_keeps_exactly_its_layers_at_the_site(name, normalisation):
    network = build_network(Job(network={"name": name, "channels": (8, 16), "normalisation": normalisation}))
    average, local = (set(exchanged_names(network, rule)) for rule in ("average", "local"))
    norms = [module for module in network.modules() if "Norm" in type(module).__name__]
    kept = {id(value) for module in norms for value in module.state_dict(keep_vars=True).values()}
    state = network.state_dict(keep_vars=True)
    assert norms and local < average
    assert average - local == {each for each in average if id(state[each]) in kept}


@pytest.mark.parametrize("normalisation", NORMALISATIONS)
@pytest.mark.parametrize("rule", ["average", "local"])
def test_shared_and_local_values_together_are_the_whole_network(cases, normalisation, rule):
    job = tiny_job(network={"normalisation": normalisation}, federation={"normalisation": rule})
    trainer = Trainer(job, cases, CPU, "site-1")
    trainer.train(1, 1, 1)
    shared, local = trainer.shared_values(), trainer.local_values()
    assert not shared.keys() & local.keys()
    assert same(dict(sorted((shared | local).items())), dict(sorted(trainer.all_values().items())))
    assert all(value.dtype == torch.float32 and value.is_contiguous() for value in shared.values())


def test_loading_shared_values_leaves_the_local_ones_as_they_are(cases):
    job = tiny_job(federation={"normalisation": "local"}, training={"optimizer": "sgd"})
    first, second = (Trainer(job, cases, CPU, site) for site in "ab")
    for trainer in (first, second):
        trainer.train(1, 3, 1)
    kept = second.local_values()
    assert kept and not same(kept, first.local_values())
    second.load(first.shared_values())
    assert same(second.shared_values(), first.shared_values())
    assert same(second.local_values(), kept)


def test_copied_values_do_not_change_when_training_goes_on(cases):
    trainer = Trainer(tiny_job(network={"normalisation": "batch"}), cases, CPU, "site-1")
    copies = [trainer.shared_values(), trainer.local_values(), trainer.all_values()]
    before = [{name: value.clone() for name, value in copy.items()} for copy in copies]
    trainer.train(1, 2, 1)
    assert all(same(copy, old) for copy, old in zip(copies, before, strict=True))
    assert not same(trainer.shared_values(), copies[0])


# preparation


def stored_as(codes, voxels):
    """The same volume, its voxels stored in another order, and the affine of that order."""
    image = nibabel.Nifti1Image(voxels, AFFINE)
    change = nibabel.orientations.ornt_transform(
        nibabel.io_orientation(AFFINE), nibabel.orientations.axcodes2ornt(codes)
    )
    turned = image.as_reoriented(change)
    return np.asarray(turned.dataobj), turned.affine


def stored_case(folder, codes, seed=0):
    image, label = make_ct(seed)
    turned, affine = stored_as(codes, image)
    return write(folder, turned, stored_as(codes, label)[0], affine)


@pytest.mark.parametrize("spacing", [SPACING_MM, (3.0, 5.0, 4.0)])
@pytest.mark.parametrize("codes", ["LPS", "LAS", "RPI", "AIR", "SRP", "PIL"])
def test_a_volume_is_prepared_alike_however_its_voxels_are_stored(tmp_path, codes, spacing):
    wanted = prepare(stored_case(tmp_path / "ras", "RAS"), spacing_mm=spacing)
    found = prepare(stored_case(tmp_path / "other", codes), spacing_mm=spacing)
    assert found.image.shape == wanted.image.shape
    assert float((found.image.float() - wanted.image.float()).abs().max()) < 2e-3
    assert float((found.label != wanted.label).float().mean()) < (1e-9 if spacing == SPACING_MM else 2e-3)
    torch.testing.assert_close(found.affine, wanted.affine)


def centroid_mm(case):
    places = torch.nonzero(case.label[0] == 1).double().mean(0)
    return (case.affine @ torch.cat([places, torch.ones(1, dtype=torch.float64)]))[:3]


@pytest.mark.parametrize("spacing", [SPACING_MM, (2.0, 2.0, 2.0), (6.0, 5.0, 3.0)])
@pytest.mark.parametrize("codes", ["RAS", "LPS"])
def test_the_organ_keeps_its_place_side_and_size(tmp_path, codes, spacing):
    _, label = make_ct()
    places = np.argwhere(label).mean(0)
    wanted = (AFFINE @ [*places, 1])[:3]
    case = prepare(stored_case(tmp_path, codes), spacing_mm=spacing)
    torch.testing.assert_close(centroid_mm(case), torch.from_numpy(wanted), atol=max(spacing) / 2, rtol=0)
    assert wanted[0] < -5  # the patient's left
    torch.testing.assert_close(torch.diag(case.affine)[:3], torch.tensor(spacing, dtype=torch.float64))
    volume = float((case.label == 1).sum()) * math.prod(spacing)
    assert volume == pytest.approx(label.sum() * math.prod(SPACING_MM), rel=0.2)


def test_the_window_becomes_0_to_1_and_the_rest_is_clipped(tmp_path):
    image, label = make_ct()
    body = image > -300
    image[body] = np.linspace(-600, 1200, body.sum()).round()
    case = prepare(write(tmp_path, image, label), window_hu=(-100.0, 300.0))
    assert (float(case.image.min()), float(case.image.max())) == (0.0, 1.0)
    inverse = torch.linalg.inv(torch.from_numpy(AFFINE)) @ case.affine
    corner = inverse[:3, 3].round().long().tolist()
    shape = case.image.shape[1:]
    part = image[tuple(slice(start, start + size) for start, size in zip(corner, shape, strict=True))]
    wanted = np.clip((part + 100.0) / 400, 0, 1)
    np.testing.assert_allclose(case.image[0].float().numpy(), wanted, atol=1e-3)


def test_air_around_the_body_is_cut_off_and_no_organ_with_it(tmp_path):
    image, label = np.full((40, 36, 12), -1000, np.int16), np.zeros((40, 36, 12), np.uint8)
    image[12:25, 10:22] = 40
    label[13:16, 11:14, 3:6] = 1
    case = prepare(write(tmp_path, image, label))
    assert case.image.shape == (1, 17, 16, 12)  # two voxels of margin along x and y
    assert int((case.label == 1).sum()) == 27


def test_organs_are_numbered_in_the_order_of_the_job_and_other_values_are_background(tmp_path):
    image, label = make_ct(organ=7)
    label[14:16, 8:12, 4:8], label[10:12, 8:12, 4:8] = 2, 9
    counts = {value: int((label == value).sum()) for value in (2, 7)}
    case = prepare(write(tmp_path, image, label), labels={"spleen": 7, "liver": 2})
    assert torch.bincount(case.label.flatten().int())[1:].tolist() == [counts[7], counts[2]]
    case = prepare(write(tmp_path, image, label), labels={"liver": 2, "kidney": 4, "spleen": 7})
    assert torch.bincount(case.label.flatten().int())[1:].tolist() == [counts[2], 0, counts[7]]


def test_a_label_of_large_values_or_fractional_type_is_numbered_rightly(tmp_path):
    image, label = make_ct()
    for kind, value in [(np.uint16, 65535), (np.float32, 300.0), (np.int16, 257)]:
        case = prepare(write(tmp_path, image, label.astype(kind) * kind(value)), labels={"spleen": int(value)})
        assert int((case.label == 1).sum()) == int(label.sum())


def test_patch_centres_are_organ_voxels_and_body_voxels(cases):
    for case in cases:
        label, image = case.label.flatten(), case.image.flatten()
        assert torch.equal(case.organ_centres.long(), torch.nonzero(label)[:, 0])
        assert bool((label[case.body_centres.long()] == 0).all() and (image[case.body_centres.long()] > 0).all())
        assert len(case.body_centres) > 500


def test_types_are_those_that_are_promised(cases):
    case = cases[0]
    assert (case.image.dtype, case.label.dtype, case.affine.dtype) == (torch.float16, torch.uint8, torch.float64)
    assert case.image.shape == case.label.shape and case.image.shape[0] == 1


def tensors(case):
    values = {field.name: getattr(case, field.name) for field in dataclasses.fields(case)}
    return {name: value for name, value in values.items() if isinstance(value, torch.Tensor)}


@pytest.fixture
def case(tmp_path):
    return write(tmp_path, *make_ct())


def test_the_cache_gives_identical_tensors_without_reading_the_images_again(case, tmp_path):
    fresh, stored = prepare(case), prepare(case, tmp_path / "cache")
    (file,) = (tmp_path / "cache").glob("*.safetensors")
    written = file.stat().st_mtime_ns
    again = prepare(case, tmp_path / "cache")
    assert same(tensors(fresh), tensors(stored)) and same(tensors(stored), tensors(again))
    assert (again.name, again.source) == (case.name, case)
    assert [file.stat().st_mtime_ns] == [written] and len(list((tmp_path / "cache").glob("*.safetensors"))) == 1


def test_the_name_of_a_case_stands_nowhere_in_the_cache(case, tmp_path):
    prepare(case, tmp_path / "cache")
    (file,) = (tmp_path / "cache").glob("*.safetensors")
    assert b"case" not in file.name.encode() + file.read_bytes()[:2000]


@pytest.mark.parametrize("keep", [0, 5, 100, 0.5, -1])
def test_a_damaged_cache_file_is_made_anew(case, tmp_path, keep):
    wanted = prepare(case, tmp_path / "cache")
    (file,) = (tmp_path / "cache").glob("*.safetensors")
    content = file.read_bytes()
    file.write_bytes(content[: int(keep * len(content)) if isinstance(keep, float) else keep])
    assert same(tensors(prepare(case, tmp_path / "cache")), tensors(wanted))
    assert file.read_bytes() == content


def test_a_cache_file_of_another_kind_is_made_anew(case, tmp_path):
    wanted = prepare(case, tmp_path / "cache")
    (file,) = (tmp_path / "cache").glob("*.safetensors")
    file.write_bytes(b"not what was written" * 100)
    assert same(tensors(prepare(case, tmp_path / "cache")), tensors(wanted))


@pytest.mark.parametrize(
    "settings", [{"spacing_mm": (4.0, 4.0, 4.0)}, {"window_hu": (-100.0, 240.0)}, {"labels": {"spleen": 2}}]
)
def test_other_settings_are_prepared_anew(case, tmp_path, settings):
    prepare(case, tmp_path / "cache")
    assert same(tensors(prepare(case, tmp_path / "cache", **settings)), tensors(prepare(case, **settings)))
    assert len(list((tmp_path / "cache").glob("*.safetensors"))) == 2


def test_another_order_of_the_organs_is_prepared_anew(tmp_path):
    image, label = make_ct()
    label[14:16, 8:12, 4:8] = 2
    case = write(tmp_path, image, label)
    first = prepare(case, tmp_path / "cache", labels={"a": 1, "b": 2})
    second = prepare(case, tmp_path / "cache", labels={"b": 2, "a": 1})
    assert torch.equal((first.label == 1), (second.label == 2)) and not torch.equal(first.label, second.label)


def test_settings_that_do_not_shape_a_case_leave_the_cache_valid(case, tmp_path):
    prepare(case, tmp_path / "cache")
    prepare(case, tmp_path / "cache", patch_voxels=(16, 16, 16), test_fraction=0.5)
    assert len(list((tmp_path / "cache").glob("*.safetensors"))) == 1


def test_other_content_is_prepared_anew(tmp_path):
    cache = tmp_path / "cache"
    image, label = make_ct()
    first = prepare(write(tmp_path, image, label), cache)
    image[12, 10, 6] += 50
    second = prepare(write(tmp_path, image, label), cache)
    label[12, 10, 6] = 1
    third = prepare(write(tmp_path, image, label), cache)
    assert not torch.equal(first.image, second.image) and torch.equal(first.label, second.label)
    assert not torch.equal(second.label, third.label)
    assert len(list(cache.glob("*.safetensors"))) == 3


def test_the_same_case_may_be_prepared_by_many_at_once(case, tmp_path):
    wanted = tensors(prepare(case))
    together = threading.Barrier(6)

    def prepare_with_others(cache):
        together.wait(10)
        return prepare(case, cache)

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        with ThreadPoolExecutor(6) as pool:
            caches = [tmp_path / f"cache {number // 6}" for number in range(24)]
            found = list(pool.map(prepare_with_others, caches))
    finally:
        sys.setswitchinterval(before)
    assert all(same(tensors(each), wanted) for each in found)
    for cache in caches:
        assert not list(cache.glob("*.tmp")) and len(list(cache.glob("*.safetensors"))) == 1


# patches


def block_case(shape=(40, 40, 40), organ=(slice(4, 8),) * 3):
    """A body that fills its volume, an organ in it; the image tells each voxel's place and organ."""
    label = torch.zeros(1, *shape, dtype=torch.uint8)
    label[(0, *organ)] = 1
    image = torch.linspace(0.25, 0.5, math.prod(shape)).reshape(1, *shape) + 0.5 * label
    flat = label.flatten()
    return PreparedCase(
        name="block",
        image=image.half(),
        label=label,
        affine=torch.eye(4, dtype=torch.float64),
        organ_centres=torch.nonzero(flat)[:, 0].int(),
        body_centres=torch.nonzero(flat == 0)[:, 0].int(),
        source=None,
    )


PLAIN = AugmentationSettings(intensity_scale=0, intensity_shift=0)


def draw(cases, patch, count=8, share=0.5, change=PLAIN, seed=0):
    return PatchSampler(cases, patch, share, change).draw(count, np.random.default_rng(seed))


@pytest.mark.parametrize("patch", [(8, 8, 8), (40, 40, 40), (1, 40, 7), (16, 24, 32)])
def test_patches_have_the_size_and_types_that_are_asked_for(patch):
    images, labels = draw([block_case()], patch, count=3)
    assert images.shape == labels.shape == (3, 1, *patch)
    assert (images.dtype, labels.dtype) == (torch.float32, torch.uint8)
    assert bool(torch.isfinite(images).all())


def test_the_cases_that_are_trained_and_validated_on_go_to_a_device_that_holds_them():
    held = SiteData(*([block_case()] for _ in range(3)), [])
    size = 2 * 3 * 40**3  # voxels of float16 and uint8, of two cases
    there = held.near(torch.device("meta"), size)
    for case in (there.training[0], there.validation[0]):
        assert case.image.is_meta and case.label.is_meta and not case.organ_centres.is_meta
    assert there.test == held.test and held.near(torch.device("meta"), size - 1) is held


@pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 1.0])
def test_the_asked_share_of_patches_is_centred_on_the_organ(share):
    _, labels = draw([block_case()], (8, 8, 8), count=400, share=share)
    with_organ = float((labels.flatten(1).sum(1) > 0).float().mean())
    assert share - 0.07 <= with_organ <= min(share + 0.12, 1)


def test_organ_and_image_of_a_patch_belong_together():
    images, labels = draw([block_case()], (8, 8, 8), count=50, share=0.7, seed=3)
    assert torch.equal(images > 0.7, labels == 1)


@pytest.mark.parametrize("shape", [(5, 40, 40), (40, 3, 8), (5, 5, 5)])
def test_a_volume_smaller_than_a_patch_is_padded_with_air(shape):
    case = block_case(shape, (slice(1, 3),) * 3)
    images, labels = draw([case], (16, 16, 16), count=6, share=1.0)
    inside = tuple(slice(0, min(size, 16)) for size in shape)
    assert images.shape == (6, 1, 16, 16, 16)
    for image, label in zip(images, labels, strict=True):
        assert int(label.sum()) == 8
        outside = image[0].clone()
        outside[inside] = 0
        assert float(outside.abs().max()) == 0
        assert float(image[0][inside].min()) > 0


def test_a_case_without_the_organ_and_one_filled_by_it_give_patches():
    for organ, value in [((slice(0, 0),) * 3, 0), ((slice(None),) * 3, 1)]:
        for share in (0.0, 1.0):
            _, labels = draw([block_case(organ=organ)], (8, 8, 8), share=share)
            assert bool((labels == value).all())


def test_a_case_without_organ_and_body_gives_patches():
    case = block_case(organ=(slice(0, 0),) * 3)
    images, _ = draw([dataclasses.replace(case, body_centres=case.organ_centres)], (8, 8, 8))
    assert images.shape == (8, 1, 8, 8, 8) and len(torch.unique(images.flatten(1)[:, 0])) > 1


def test_every_case_gives_patches():
    some = [
        dataclasses.replace(block_case(), image=torch.full((1, 40, 40, 40), value).half()) for value in (0.1, 0.2, 0.3)
    ]
    images, _ = draw(some, (4, 4, 4), count=60)
    assert len(torch.unique(images[:, 0, 0, 0, 0])) == 3


@pytest.mark.parametrize("axes", [(0,), (1,), (2,), (0, 2), (0, 1, 2)])
def test_a_flip_mirrors_image_and_label_alike_along_its_axes(axes):
    chances = tuple(float(axis in axes) for axis in range(3))
    turned = AugmentationSettings(flip_probability=chances, intensity_scale=0, intensity_shift=0)
    images, labels = draw([block_case()], (8, 12, 16))
    flipped_images, flipped_labels = draw([block_case()], (8, 12, 16), change=turned)
    dims = [axis + 2 for axis in axes]
    assert torch.equal(flipped_images, images.flip(dims)) and torch.equal(flipped_labels, labels.flip(dims))
    assert not torch.equal(flipped_images, images)


def test_intensities_are_scaled_shifted_and_made_noisy_within_their_limits():
    case = dataclasses.replace(block_case(), image=torch.full((1, 40, 40, 40), 0.5).half())

    def values(**change):
        settings = {"intensity_scale": 0, "intensity_shift": 0} | change
        return draw([case], (8, 8, 8), count=100, change=AugmentationSettings(**settings))[0].flatten(1)

    scaled, shifted, noisy = values(intensity_scale=0.2), values(intensity_shift=0.1), values(noise=0.05)
    for changed, low, high in [(scaled, 0.4, 0.6), (shifted, 0.4, 0.6)]:
        assert float((changed - changed[:, :1]).abs().max()) == 0
        assert low <= float(changed.min()) < low + 0.02 and high - 0.02 < float(changed.max()) <= high
    assert float(noisy.std()) == pytest.approx(0.05, rel=0.05)
    assert float(noisy.mean()) == pytest.approx(0.5, abs=0.005)


def test_the_same_stream_gives_the_same_patches_and_the_cases_stay_as_they_are():
    case = block_case()
    before = {name: value.clone() for name, value in tensors(case).items()}
    change = AugmentationSettings(flip_probability=(0.5, 0.5, 0.5), noise=0.1)
    first, second = (draw([case], (8, 8, 8), change=change, seed=5) for _ in range(2))
    assert torch.equal(first[0], second[0]) and torch.equal(first[1], second[1])
    assert not torch.equal(draw([case], (8, 8, 8), change=change, seed=6)[0], first[0])
    assert same(tensors(case), before)


# scores


def test_dice_by_hand():
    predicted, truth = torch.tensor([1, 1, 1, 0, 2, 2]), torch.tensor([1, 1, 0, 1, 2, 0])
    assert dice(predicted, truth, ["a", "b"]) == {"a": pytest.approx(4 / 6), "b": pytest.approx(2 / 3)}


def blob(corner, size=4, shape=(16, 14, 12)):
    volume = torch.zeros(shape, dtype=torch.uint8)
    volume[tuple(slice(start, start + size) for start in corner)] = 1
    return volume


def both_scores(predicted, truth):
    spacing = (1.0, 2.0, 3.0)
    return dice(predicted, truth, ["a"])["a"], surface_dice(predicted, truth, ["a"], spacing, 1.0)["a"]


def test_scores_where_organs_are_missing():
    nothing, something = torch.zeros(16, 14, 12), blob((3, 3, 3))
    assert all(math.isnan(score) for score in both_scores(nothing, nothing))
    assert both_scores(something, nothing) == (0.0, 0.0) == both_scores(nothing, something)
    assert both_scores(something, something) == (1.0, 1.0)
    assert both_scores(blob((0, 0, 0)), blob((10, 9, 8))) == (0.0, 0.0)


@pytest.mark.parametrize("seed", range(8))
def test_surface_dice_equals_monais_on_the_whole_volume(seed):
    random = np.random.default_rng(seed)
    spacing = random.uniform(0.6, 4, 3).tolist()
    labels = []
    for shift in (0, seed % 3):
        smooth = torch.from_numpy(np.random.default_rng(seed).normal(size=(1, 1, 24, 20, 16)))
        smooth = nn.functional.avg_pool3d(smooth, 5, 1, 2)[0, 0].roll(shift, 0)
        labels.append((smooth > (0.12 if seed % 2 else -0.05)).to(torch.uint8))
    for tolerance in (0.0, 1.0, 3.0):
        one_hot = [nn.functional.one_hot(label.long(), 2).movedim(-1, 0)[None] for label in labels]
        wanted = float(compute_surface_dice(*one_hot, class_thresholds=[tolerance], spacing=spacing))
        found = surface_dice(labels[0], labels[1], ["a"], spacing, tolerance)["a"]
        assert found == pytest.approx(wanted, abs=1e-9)


def test_surface_dice_of_organs_that_fill_the_volume_or_touch_its_border():
    full = torch.ones(6, 5, 4, dtype=torch.uint8)
    assert surface_dice(full, full, ["a"], (1, 1, 1), 0.5)["a"] == 1.0
    corner = blob((0, 0, 0), shape=(6, 6, 6))
    assert surface_dice(corner, corner, ["a"], (1, 1, 1), 0.5)["a"] == 1.0


@pytest.mark.parametrize(("axis", "millimetres"), [(0, 2.0), (1, 3.0), (2, 5.0)])
def test_a_shift_counts_as_right_exactly_from_its_length_on(axis, millimetres):
    spacing = (2.0, 3.0, 5.0)
    corner = [4, 4, 4]
    truth = blob(corner)
    corner[axis] += 1
    predicted = blob(corner)

    def score(tolerance):
        return surface_dice(predicted, truth, ["a"], spacing, tolerance)["a"]

    assert score(millimetres + 0.01) == 1.0
    assert score(millimetres - 0.01) < 1.0


def test_surface_dice_counts_every_organ_by_itself():
    truth = blob((2, 2, 2)) + 2 * blob((9, 8, 7))
    predicted = blob((2, 2, 2)) + 2 * blob((2, 9, 7), size=2)
    scores = surface_dice(predicted, truth, ["a", "b", "c"], (1, 1, 1), 1)
    assert scores["a"] == 1.0 and scores["b"] < 0.2 and math.isnan(scores["c"])


def test_a_summary_leaves_out_what_is_unknown():
    summary = Summary.of([0.5, math.nan, 1.0])
    assert (summary.mean, summary.std, summary.count) == (0.75, 0.25, 2)
    assert math.isnan(Summary.of([math.nan]).mean) and Summary.of([]).count == 0


# predictions


class Bright(nn.Module):
    """Finds what is brighter than 120 HU: right for volumes whose organ alone is."""

    def forward(self, image):
        return torch.cat([torch.zeros_like(image), (image - 0.7) * 1000], 1)


def bright_case(folder, codes="RAS"):
    image, label = make_ct()
    image[label == 1] = 230
    turned, affine = stored_as(codes, image)
    return write(folder, turned, stored_as(codes, label)[0], affine)


FP32 = MixedPrecision("fp32", CPU)


def test_predictions_are_probabilities_of_the_whole_volume(cases):
    job = tiny_job(data={"patch_voxels": (8, 8, 8)})
    network = build_network(Job(network={"channels": (4, 8), "dropout": 0.5})).train()
    found = predict(network, cases[0].image, job, FP32)
    assert found.shape == (2, *cases[0].image.shape[1:]) and found.dtype == torch.float32
    torch.testing.assert_close(found.sum(0), torch.ones(found.shape[1:]))
    assert not found.requires_grad
    assert torch.equal(predict(network, cases[0].image, job, FP32), found)


def test_windows_overlap_as_much_as_the_job_says(cases):
    network = build_network(tiny_job())
    base = tiny_job(data={"patch_voxels": (8, 8, 8)}).model_dump()
    jobs = [Job.model_validate(base | {"evaluation": {"overlap": share}}) for share in (0.0, 0.5)]
    none, half = (predict(network, cases[0].image, job, FP32) for job in jobs)
    assert float((none - half).abs().max()) > 1e-4


@pytest.mark.parametrize("patch", [(8, 8, 8), (16, 16, 16), (32, 32, 32)])
@pytest.mark.parametrize("codes", ["RAS", "LPS", "SAR"])
def test_a_perfect_prediction_scores_one_on_both_grids(tmp_path, codes, patch):
    job = tiny_job(data={"patch_voxels": patch})
    case = prepare(bright_case(tmp_path, codes))
    (prepared,) = score_prepared(Bright(), [case], job, FP32)
    (native,) = score_native(Bright(), [case], job, FP32)
    assert prepared.dice == {"spleen": 1.0} and prepared.surface_dice is None
    assert native.dice == {"spleen": 1.0} and native.surface_dice == {"spleen": 1.0}
    assert prepared.case == native.case == "case"


def test_a_perfect_prediction_on_a_finer_grid_scores_about_one(tmp_path):
    job = tiny_job(data={"spacing_mm": (2.0, 2.0, 2.5)})
    case = prepare(bright_case(tmp_path, "LPS"), spacing_mm=(2.0, 2.0, 2.5))
    (native,) = score_native(Bright(), [case], job, FP32)
    assert native.dice["spleen"] > 0.9 and native.surface_dice["spleen"] > 0.95


def test_a_mirrored_prediction_scores_badly(tmp_path):
    case = prepare(bright_case(tmp_path))
    mirrored = dataclasses.replace(case, image=case.image.flip(1))
    (native,) = score_native(Bright(), [mirrored], tiny_job(), FP32)
    assert native.dice["spleen"] < 0.1


@pytest.mark.parametrize("crop", [0, 3])
@pytest.mark.parametrize("codes", ["RAS", "LPS", "AIL"])
def test_a_label_map_comes_back_exactly_on_its_own_grid(tmp_path, codes, crop):
    settings = DataSettings(labels={"a": 1, "b": 2}, spacing_mm=SPACING_MM)
    _, label = make_ct()
    label[14:17, 8:12, 4:8] = 2
    case = write(tmp_path, *(stored_as(codes, each)[0] for each in (make_ct()[0], label)), stored_as(codes, label)[1])
    native = load_label(case.label, settings)
    values = native.as_tensor()[0].long()
    assert np.array_equal(values.numpy(), label)
    affine = native.affine.clone()
    inside = (slice(crop, 24 - crop), slice(crop, 20 - crop), slice(None))
    affine[:2, 3] += torch.tensor([crop * 4.0, crop * 4.0], dtype=affine.dtype)
    probabilities = nn.functional.one_hot(values[inside], 3).movedim(-1, 0).float()
    found = to_native_grid(probabilities, affine, native)
    assert found.dtype == torch.uint8 and torch.equal(found.long(), values)


# devices and precision


@pytest.mark.parametrize(
    "name", ["gpu", "CPU", "cpu:0", "cuda:", "cuda:x", "cuda:-1", "cuda:²", "cuda:0:1", "", " cpu", "mps"]
)
def test_a_device_that_does_not_exist_is_refused_with_what_is_allowed(name):
    with pytest.raises(ConfigError, match="one of auto, cpu, cuda"):
        choose_device(name)


def test_a_gpu_beyond_those_of_the_machine_is_refused():
    with pytest.raises(ConfigError, match=r"this machine has \d+ usable GPU"):
        choose_device(f"cuda:{torch.cuda.device_count()}")


def test_the_cpu_can_be_chosen_and_auto_chooses_something():
    assert choose_device("cpu") == CPU
    assert choose_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")


def test_precision_on_a_cpu():
    assert choose_precision("auto", CPU) == ("bf16" if HAS_BF16 else "fp32")
    assert choose_precision("bf16", CPU) == "bf16" and choose_precision("fp32", CPU) == "fp32"
    with pytest.raises(ConfigError, match="fp16 needs a GPU"):
        choose_precision("fp16", CPU)


def test_a_job_for_fp16_does_not_start_on_a_cpu():
    with pytest.raises(ConfigError, match=r"training\.precision"):
        Trainer(tiny_job(training={"precision": "fp16"}), [], CPU, "site-1")


# what may leave the site


def test_validation_reports_hold_means_over_cases_and_organs():
    scores = [CaseScore("x", {"a": 0.5, "b": math.nan}), CaseScore("y", {"a": 0.7, "b": 0.2})]
    report = validation_report(scores, ["a", "b"], 1.5)
    assert report.cases == 2 and report.seconds == 1.5
    assert report.metrics == {
        "val_dice": pytest.approx(0.4),
        "val_dice_a": pytest.approx(0.6),
        "val_dice_b": pytest.approx(0.2),
    }


def test_validation_reports_of_nothing_know_nothing():
    nothing = {"val_dice": None, "val_dice_a": None}
    assert validation_report([], ["a"], 0).metrics == nothing
    assert validation_report([CaseScore("x", {"a": math.nan})], ["a"], 0).metrics == nothing


def test_test_reports_and_the_sites_own_table(tmp_path):
    scores = [CaseScore("patient 7", {"a": 0.5}, {"a": 0.25}), CaseScore("y", {"a": 1.0}, {"a": math.nan})]
    report = report_of_test(scores, ["a"], 2.0)
    assert report.dice["a"].model_dump() == {"mean": 0.75, "std": 0.25, "cases": 2}
    assert report.surface_dice["a"].model_dump() == {"mean": 0.25, "std": 0.0, "cases": 1}
    assert "patient" not in report.model_dump_json()
    write_case_scores(tmp_path / "out" / "cases.csv", scores)
    rows = list(csv.reader((tmp_path / "out" / "cases.csv").open()))
    assert rows[0] == ["case", "organ", "dice", "surface_dice"]
    assert rows[1:] == [["patient 7", "a", "0.500000", "0.250000"], ["y", "a", "1.000000", "nan"]]
