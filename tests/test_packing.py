"""Convolutions in packed maps, against the same layers of torch's and MONAI's."""

import copy

import pytest
import torch
from monai.networks.blocks.convolutions import Convolution, ResidualUnit
from torch import nn

from fl_app.config import Job
from fl_app.networks.registry import build_network
from fl_app.training import layers
from fl_app.training.adapting import QuickUp, adapt_layers
from fl_app.training.packing import packed_map, unpacked
from tests.bf16 import needs_bf16

SIDES = (6, 5, 4)


def last_block(channels=2, inputs=6, unit=None, **settings):
    """A U-Net's last block as MONAI builds it, with weights and slopes of its own."""
    torch.manual_seed(0)
    up = Convolution(
        3, inputs, channels, strides=2, is_transposed=True, adn_ordering="NDA", norm=("instance", {"affine": True}),
        act=("prelu", {"init": 0.2}), **settings,
    )  # fmt: skip
    unit = unit or ResidualUnit(3, channels, channels, subunits=1, last_conv_only=True)
    block = nn.Sequential(up, unit)
    for weight in block.parameters():
        if weight.dim() == 1:
            nn.init.normal_(weight, 0.5, 0.2)
    return block


def results(block, images, kind):
    """What a block makes of images, and the gradients of them and of its weights."""
    block = copy.deepcopy(block)
    exact = kind == torch.float64
    block, images = (block.double(), images.double()) if exact else (block, images.float())
    images = images.clone().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=kind == torch.bfloat16):
        result = block(images)
    chance = torch.Generator().manual_seed(2)
    result.backward(torch.randn(result.shape, generator=chance, dtype=torch.double).to(result.dtype))
    named = {name: weight.grad for name, weight in block.named_parameters() if weight.requires_grad}
    return {"result": result.detach(), "images": images.grad, **named}


def errors(found, exact):
    """Of each result, relative to its norm; without biases that a normalisation takes away again."""
    return {
        name: float((found[name].double() - value).norm() / value.norm())
        for name, value in exact.items()
        if float(value.norm()) > 1e-6
    }


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("patches", [1, 2])
def test_a_last_block_and_its_gradients_are_monais(channels, patches):
    plain = last_block(channels)
    quick = adapt_layers(copy.deepcopy(plain))
    assert type(quick) is QuickUp and quick.state_dict().keys() == plain.state_dict().keys()
    images = torch.randn(patches, 6, *SIDES)
    exact = results(plain, images, torch.float64)
    assert len(errors(exact, exact)) == 2 + 6 == len(exact) - 1
    assert max(errors(results(quick, images, torch.float64), exact).values()) < 1e-12
    assert max(errors(results(quick, images, torch.float32), exact).values()) < 5e-5


@needs_bf16
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last_3d])
def test_a_last_block_in_bf16_is_as_near_as_layer_by_layer(layout):
    plain = last_block(inputs=32)
    quick = adapt_layers(copy.deepcopy(plain)).to(memory_format=layout)
    by_layer = adapt_layers(nn.Sequential(*copy.deepcopy(plain), nn.Identity()))  # three: no last block
    assert type(by_layer) is nn.Sequential
    images = torch.randn(2, 32, 12, 10, 8).contiguous(memory_format=layout)
    exact = results(plain, images, torch.float64)
    usual = errors(results(by_layer, images, torch.bfloat16), exact)
    for name, error in errors(results(quick, images, torch.bfloat16), exact).items():
        assert error < 1.3 * usual[name] + 1e-3, name


def test_a_last_block_predicts_as_it_trains():
    quick = adapt_layers(last_block())
    images = torch.randn(1, 6, *SIDES)
    with torch.no_grad():
        predicted = quick(images)
    assert torch.equal(predicted, quick(images)) and predicted.is_contiguous()


def test_frozen_weights_of_a_last_block_get_no_gradient():
    plain = last_block()
    for name in ("0.conv.weight", "1.conv.unit0.conv.weight"):
        plain.get_parameter(name).requires_grad_(False)
    quick = adapt_layers(copy.deepcopy(plain))
    images = torch.randn(1, 6, *SIDES)
    exact, found = (results(each, images, torch.float64) for each in (plain, quick))
    assert found.keys() == exact.keys() and len(exact) == 2 + 5
    assert max(errors(found, exact).values()) < 1e-12


@pytest.mark.parametrize(
    "block",
    [
        last_block(dropout=0.5),
        last_block(unit=ResidualUnit(3, 2, 2, subunits=2, last_conv_only=True)),
        last_block(unit=ResidualUnit(3, 2, 3, subunits=1, last_conv_only=True)),
        last_block(unit=ResidualUnit(3, 2, 2, subunits=1)),
        last_block(unit=ResidualUnit(3, 2, 2, subunits=1, kernel_size=5, last_conv_only=True)),
    ],
    ids=["dropout", "two convolutions", "a convolution beside", "normalised", "kernel 5"],
)
def test_other_blocks_are_computed_layer_by_layer(block):
    assert type(adapt_layers(copy.deepcopy(block))) is nn.Sequential


def test_a_last_block_of_many_channels_or_few_voxels_is_computed_layer_by_layer():
    for channels, sides in ((5, SIDES), (2, (3, 4, 4))):
        plain = last_block(channels)
        images = torch.randn(1, 6, *sides)
        exact = results(plain, images, torch.float64)
        assert max(errors(results(adapt_layers(plain), images, torch.float32), exact).values()) < 5e-5


def test_a_last_block_is_traced_as_monais():
    plain = last_block().eval()
    quick = adapt_layers(copy.deepcopy(plain))
    images = torch.randn(1, 6, *SIDES)
    traced = torch.jit.trace(quick, images)
    assert "einsum" not in str(traced.inlined_graph)
    torch.testing.assert_close(traced(images), plain(images), rtol=1e-4, atol=1e-5)


@needs_bf16
@pytest.mark.parametrize("patches", [1, 2])
@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("tiles", [True, False])
def test_a_first_convolution_in_bf16_is_as_near_as_torchs(monkeypatch, patches, channels, tiles):
    monkeypatch.setattr(layers, "HAS_TILES", tiles)
    torch.manual_seed(0)
    plain = nn.Conv3d(channels, 16, 3, 2, 1)
    images = torch.randn(patches, channels, 16, 12, 8)
    exact = results(plain, images, torch.float64)
    found = results(adapt_layers(copy.deepcopy(plain)), images, torch.bfloat16)
    assert found.keys() == exact.keys()
    usual = errors(results(plain, images, torch.bfloat16), exact)
    for name, error in errors(found, exact).items():
        assert error < 1.3 * usual[name] + 1e-3, name


@needs_bf16
def test_a_first_convolution_of_odd_sides_is_torchs(monkeypatch):
    monkeypatch.setattr(layers, "HAS_TILES", True)
    plain = nn.Conv3d(1, 16, 3, 2, 1)
    images = torch.randn(1, 1, 17, 12, 8)
    found = results(adapt_layers(copy.deepcopy(plain)), images, torch.bfloat16)
    assert max(errors(found, results(plain, images, torch.float64)).values()) < 0.02


@pytest.mark.parametrize("kind", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last_3d])
def test_packing_holds_each_block_of_eight_voxels(kind, layout):
    whole = torch.arange(2 * 3 * 4 * 6 * 8).view(2, 3, 4, 6, 8).to(kind)
    packed = packed_map(whole.contiguous(memory_format=layout))
    assert packed.shape == (2, 24, 2, 3, 4) and packed.is_contiguous(memory_format=torch.channels_last_3d)
    assert torch.equal(packed[1, 8:16, 1, 2, 3], whole[1, 1, 2:4, 4:6, 6:8].flatten())
    assert torch.equal(unpacked(packed), whole) and torch.equal(unpacked(packed.contiguous()), whole)


def test_the_default_network_has_a_quick_last_block():
    network = adapt_layers(build_network(Job()))
    assert [type(module) for module in network.modules()].count(QuickUp) == 1
