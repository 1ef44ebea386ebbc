"""Networks by name: what they map, what travels, which settings they take, what they cost."""

import json
import subprocess
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import nn
from typer.testing import CliRunner

from fl_app.cli.__main__ import app
from fl_app.config import Job, NetworkSettings, network_sizes, plan_unet
from fl_app.config_file import parse_job
from fl_app.errors import ConfigError
from fl_app.networks.proposal import PooledStatistics, propose_plan
from fl_app.networks.registry import build_network, exchanged_names
from fl_app.training.adapting import adapt_layers
from fl_app.training.cost import forward_flops, training_memory
from tests.bf16 import needs_bf16

torch.set_num_threads(1)

CPU = torch.device("cpu")

# each network's smallest patch with instance or batch normalisation
SMALLEST = {
    "unet": (32, 16, 16),
    "segresnet": (16, 8, 8),
    "dynunet": (16, 16, 8),
    "vnet": (16, 16, 32),
    "ahnet": (32, 32, 64),
    "unetr": (16, 16, 16),
    "swinunetr": (32, 64, 32),
    "dints": (16, 16, 16),
}
NAMES = list(SMALLEST)


def job_of(name, seed=0, patch=None, **settings):
    sizes = network_sizes()[name]
    network = {"name": name, "size": sizes[0]} | settings
    if name in ("unet", "segresnet") and "channels" not in settings:
        network["channels"] = (4, 4, 8, 8, 8)
    data = {"patch_voxels": patch or SMALLEST[name], "labels": {"spleen": 1, "liver": 2}}
    return Job.model_validate({"network": network, "seed": seed, "data": data})


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("name", NAMES)
def test_every_network_trains_on_its_smallest_patch_and_gives_logits_alone(name, capsys):
    network = build_network(job_of(name)).train()
    logits = network(torch.rand(1, 1, *SMALLEST[name]))
    assert isinstance(logits, torch.Tensor) and logits.shape == (1, 3, *SMALLEST[name])
    logits.square().sum().backward()
    used = {each for each, value in network.named_parameters() if value.grad is not None}
    # MONAI's transformer makes layers for cross-attention that UNETR does not have
    assert {each for each, _ in network.named_parameters() if "norm_cross_attn" not in each} <= used
    assert all(bool(value.grad.isfinite().all()) for value in network.parameters() if value.grad is not None)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("name", NAMES)
def test_the_first_weights_depend_on_the_seed_alone(name):
    first = build_network(job_of(name, seed=3)).state_dict()
    torch.manual_seed(99)
    before = torch.random.get_rng_state()
    assert same(build_network(job_of(name, seed=3)).state_dict(), first)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert not same(build_network(job_of(name, seed=4)).state_dict(), first)


@pytest.mark.parametrize("name", NAMES)
def test_no_value_has_two_names(name):
    values = list(build_network(job_of(name)).state_dict(keep_vars=True).values())
    assert len({id(value) for value in values}) == len(values)


@pytest.mark.parametrize("name", NAMES)
def test_local_normalisation_keeps_exactly_its_layers_at_the_site(name):
    network = build_network(job_of(name))
    average, local = (set(exchanged_names(network, rule)) for rule in ("average", "local"))
    norms = [module for module in network.modules() if "Norm" in type(module).__name__ and not list(module.children())]
    kept = {id(value) for module in norms for value in module.state_dict(keep_vars=True).values()}
    state = network.state_dict(keep_vars=True)
    assert {each for each, _ in network.named_parameters()} <= average
    assert local < average
    assert average - local == {each for each in average if id(state[each]) in kept}


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("vnet", "ahnet")])
@pytest.mark.parametrize("normalisation", ["batch", "group"])
def test_the_normalisation_is_the_one_that_the_job_names(name, normalisation):
    kinds = {type(module).__name__ for module in build_network(job_of(name, normalisation=normalisation)).modules()}
    assert {"batch": "BatchNorm3d", "group": "GroupNorm"}[normalisation] in kinds
    assert "InstanceNorm3d" not in kinds


@pytest.mark.parametrize("name", NAMES)
def test_without_dropout_training_computes_the_same_each_time(name):
    network = build_network(job_of(name)).train()
    image = torch.rand(1, 1, *SMALLEST[name])
    with torch.no_grad():
        assert torch.equal(network(image), network(image))


@pytest.mark.parametrize("name", ["unet", "segresnet", "vnet", "unetr", "swinunetr"])
def test_dropout_drops_in_training_and_not_afterwards(name):
    network = build_network(job_of(name, dropout=0.5)).train()
    image = torch.rand(1, 1, *SMALLEST[name])
    with torch.no_grad():
        # few channels: two draws may be alike
        first = network(image)
        assert not all(torch.equal(network(image), first) for _ in range(10))
        network.eval()
        assert torch.equal(network(image), network(image))


# bf16


def gradients(network, image, mixed):
    network.zero_grad()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=mixed):
        logits = network(image)
    target = torch.linspace(-1, 1, logits.numel()).reshape(logits.shape)
    (logits.float() - target).square().mean().backward()
    return {name: each.grad.clone() for name, each in network.named_parameters() if each.grad is not None}


def distance(found, wanted):
    squares = sum(float((found[name] - wanted[name]).square().sum()) for name in wanted)
    return (squares / sum(float(each.square().sum()) for each in wanted.values())) ** 0.5


@needs_bf16
@pytest.mark.parametrize("name", NAMES)
def test_guarded_bf16_gradients_do_not_depend_on_what_was_in_memory(name):
    network = adapt_layers(build_network(job_of(name))).train()
    torch.manual_seed(0)
    image = torch.rand(1, 1, *SMALLEST[name])
    found = []
    for poison in (float("nan"), 1e9):
        freed = torch.full((20_000_000,), poison)
        del freed
        found.append(gradients(network, image, True))
    assert all(bool(each.isfinite().all()) for each in found[0].values())
    assert same(*found)


@needs_bf16
@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("vnet", "ahnet")])
def test_guarded_bf16_gradients_are_those_of_fp32(name):
    # batch normalisation over a handful of values turns a rounding into a sign: V-Net and AH-Net need large patches
    network = adapt_layers(build_network(job_of(name, normalisation="group"))).train()
    torch.manual_seed(0)
    image = torch.rand(1, 1, *SMALLEST[name])
    assert distance(gradients(network, image, True), gradients(network, image, False)) < 0.25


# settings


@pytest.mark.parametrize(
    ("section", "expected"),
    [
        ("name: dynunet, channels: [8, 16]", "network.channels: [8, 16] - no setting of dynunet, which has size, "),
        ("name: dints, dropout: 0.1", "network.dropout: 0.1 - no setting of dints, which has size, normalisation"),
        ("name: segresnet, residual_units: 2", "network.residual_units: 2 - no setting of segresnet"),
        ("size: small", "network.size: 'small' - no setting of unet, which has channels, residual_units"),
        ("name: vnet, normalisation: instance", "network.normalisation: 'instance' - batch: MONAI's vnet has no other"),
        ("name: unetr, size: huge", "network.size: 'huge' - one of tiny, small, medium, large"),
        ("name: unetr, size: tiny", "network.size: 'tiny' - one of small, medium, large: unetr has no other"),
        ("residual_units: yes", "network.residual_units: True - a number"),
        ("residual_units: 9", "network.residual_units: 9 - 8 or less"),
    ],
)
def test_a_setting_that_a_network_does_not_have_is_a_mistake(section, expected):
    with pytest.raises(ConfigError) as caught:
        parse_job(f"network: {{{section}}}")
    assert f"job:1 {expected}" in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("name", NAMES)
def test_settings_come_back_from_their_own_description(name):
    settings = NetworkSettings.model_validate({"name": name})
    assert NetworkSettings.model_validate(settings.model_dump()) == settings
    assert NetworkSettings.model_validate_json(settings.model_dump_json()) == settings


@pytest.mark.parametrize("name", NAMES)
def test_patches_that_a_network_cannot_halve_are_mistakes(name):
    multiples = job_of(name).network.patch_multiples(SMALLEST[name], (1, 1, 1))
    with pytest.raises(ValidationError, match="multiples of"):
        job_of(name, patch=(SMALLEST[name][0] + multiples[0] // 2, *SMALLEST[name][1:]))


@pytest.mark.parametrize("name", ["unet", "segresnet", "vnet", "ahnet", "swinunetr"])
def test_a_patch_that_ends_in_a_single_voxel_is_a_mistake(name):
    side = min(SMALLEST[name])
    with pytest.raises(ValidationError, match="single voxel"):
        job_of(name, patch=(side, side, side))


# nnU-Net's rules


def test_spleen_is_planned_as_nnunet_publishes_it():
    plan = plan_unet((64, 192, 160), (1.6, 0.79, 0.79))
    assert plan.strides == ((1, 1, 1), (1, 2, 2), *((2, 2, 2),) * 4)
    assert plan.kernels == ((1, 3, 3), *((3, 3, 3),) * 5)
    assert plan.multiples == (16, 32, 32)


@pytest.mark.parametrize(
    ("shape", "spacing", "patch"),
    [
        ((187, 512, 512), (1.6, 0.79, 0.79), (64, 192, 160)),  # spleen
        ((252, 512, 512), (1.245, 0.785, 0.785), (80, 192, 160)),  # lung
        ((482, 512, 512), (1.0, 0.768, 0.768), (128, 128, 128)),  # liver
        ((36, 50, 35), (1.0, 1.0, 1.0), (40, 56, 40)),  # hippocampus
        ((20, 320, 319), (3.6, 0.625, 0.625), (20, 320, 256)),  # prostate
    ],
)
def test_patches_are_proposed_as_nnunet_publishes_them(shape, spacing, patch):
    proposal = propose_plan(PooledStatistics(shape, spacing, spacing))
    assert proposal.patch_voxels == patch
    assert proposal.spacing_mm == pytest.approx(spacing)


def test_less_memory_means_a_smaller_patch():
    statistics = PooledStatistics((512, 512, 187), (0.79, 0.79, 1.6), (0.79, 0.79, 1.6))
    voxels = [torch.tensor(propose_plan(statistics, limit).patch_voxels).prod() for limit in (1e9, 4e9, 8e9)]
    assert voxels == sorted(voxels) and voxels[0] < voxels[2] / 4


def test_thick_slices_are_resampled_to_those_of_the_finer_scans():
    found = propose_plan(PooledStatistics((256, 216, 10), (1.56, 1.56, 10.0), (1.4, 1.4, 5.0)))
    assert found.spacing_mm == pytest.approx((1.56, 1.56, 5.0))


SIDES = st.tuples(*[st.integers(1, 40).map(lambda side: 4 * side)] * 3)
SPACINGS = st.tuples(*[st.floats(0.3, 6)] * 3)


@given(SIDES, SPACINGS)
def test_a_plan_keeps_the_rules(patch, spacing):
    plan = plan_unet(patch, spacing)
    assert len(plan.kernels) == len(plan.strides) and plan.kernels[-1] == (3, 3, 3)
    for side, multiple in zip(patch, plan.multiples, strict=True):
        assert multiple == 1 or side > 3.5 * multiple  # an axis is halved only from 8 voxels on
    for outer, inner in zip(plan.kernels, plan.kernels[1:], strict=False):
        assert all(before <= after for before, after in zip(outer, inner, strict=True))


# cost


class Tiny(nn.Module):
    """A convolution and its activation: what they keep can be counted by hand."""

    def __init__(self):
        super().__init__()
        self.convolution = nn.Conv3d(1, 4, 3, padding=1)
        self.out = nn.Conv3d(4, 2, 1)

    def forward(self, image):
        return self.out(torch.relu(self.convolution(image)))


def test_what_a_small_network_keeps_is_what_counting_by_hand_gives():
    network = Tiny()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    small, large = (training_memory(network, (8, 8, side), 1, CPU, "fp32") for side in (8, 16))
    values = 4 * 27 + 4 + 4 * 2 + 2
    assert small.parameters == small.gradients == 4 * values
    # NovoGrad: a mean for each weight and a squared norm for each of the four tensors
    assert small.optimizer == 4 * values + 4 * 4
    assert small.total == small.parameters + small.gradients + small.optimizer + small.activations
    # the rectified map of four channels is kept once for both the rectifier and the next convolution
    voxels = 8 * 8 * 8
    assert small.activations >= 4 * 4 * voxels
    assert large.activations == pytest.approx(2 * small.activations, rel=0.02)
    assert small.peak >= small.total - small.gradients
    assert same(network.state_dict(), before)


def test_operations_are_those_of_the_convolutions():
    assert forward_flops(Tiny(), (8, 8, 8), 2) == 2 * 2 * 512 * (4 * 27 + 4 * 2)


# the command


def fedspleen(*arguments):
    return subprocess.run([sys.executable, "-m", "fl_app.cli.__main__", *arguments], capture_output=True, text=True)


@pytest.mark.slow
def test_the_command_prints_a_table_and_json():
    done = CliRunner().invoke(app, ["networks", "segresnet", "dints", "--patch", "16", "16", "16"])
    assert done.exit_code == 0, done.output
    assert "segresnet" in done.stdout and "large: multiples of 32 for this network" in done.stdout
    done = fedspleen(
        "networks", "segresnet", "--patch", "16", "16", "16", "--json", "--measure", "--device", "cpu", "--batch", "2"
    )
    (row,) = json.loads(done.stdout)["networks"]
    assert row["parameters"] * 4 == row["parameter_bytes"] and row["step_seconds"] > 0 and row["flops"] > 1e8
    assert row["measured_bytes"] > row["parameter_bytes"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["unett"], "fedspleen: networks: 'unett' - one of unet, segresnet"),
        (["swinunetr", "--patch", "16", "32", "32"], "fedspleen: networks: --patch 16 32 32 - multiples of 32"),
        (["unet", "--precision", "half"], "networks:1 training.precision: 'half' - one of auto, bf16, fp16, fp32"),
    ],
)
def test_the_commands_mistakes_are_one_sentence(arguments, expected):
    done = fedspleen("networks", *arguments)
    assert done.returncode == 2 and done.stderr.startswith(expected) and len(done.stderr.splitlines()) == 1
