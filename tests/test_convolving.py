"""Convolutions with their gradients written over what was read, against torch's own in double precision."""

import pytest
import torch
from torch.nn import functional

from fl_app.training.blocks import Following, Sharing, block
from fl_app.training.convolving import Smoothing, Striding, Wanted
from fl_app.training.layers import QuickConvTranspose3d
from fl_app.training.transposing import Doubling, Transposing

TWO = (2, 2, 2)
ONE = (1, 1, 1)


def doubling(inputs, channels):
    layer = QuickConvTranspose3d(inputs, channels, 3, 2, 1, output_padding=1).double()
    convolving, kernel, bias = layer.as_function(torch.zeros(1, inputs, 2, 2, 2))
    assert isinstance(convolving, Doubling)
    return convolving, kernel, bias, layer


def transposing(inputs, channels):
    layer = torch.nn.ConvTranspose3d(inputs, channels, (3, 5, 3), 2, (1, 2, 1), output_padding=1).double()
    return Transposing(TWO, (1, 2, 1), ONE, ONE), layer.weight, layer.bias, layer


def smoothing(in_slabs):
    def made(inputs, channels):
        layer = torch.nn.Conv3d(inputs, channels, 3, padding=1).double()
        return Smoothing(in_slabs), layer.weight, layer.bias, layer

    return made


def striding(inputs, channels):
    layer = torch.nn.Conv3d(inputs, channels, 3, 2, 1).double()
    return Striding(TWO, ONE, ONE), layer.weight, layer.bias, layer


KINDS = {
    "doubling": (doubling, (3, 4)),
    "doubling one map": (doubling, (3,)),
    "transposing": (transposing, (3, 4)),
    "smoothing": (smoothing(False), (3,)),
    "smoothing in slabs": (smoothing(True), (3,)),
    "striding": (striding, (3,)),
}
SIDES = [(1, 6, 5, 4), (2, 31, 26, 20)]  # one slab, and several of unequal size


def maps(channels, sides):
    torch.manual_seed(0)
    count, *voxels = sides
    return [torch.randn(count, each, *voxels, dtype=torch.double) for each in channels]


@pytest.mark.parametrize("sides", SIDES, ids=str)
@pytest.mark.parametrize("over", [False, True], ids=["apart", "over"])
@pytest.mark.parametrize("name", KINDS)
def test_gradients_are_torchs_wherever_they_are_written(name, over, sides):
    make, channels = KINDS[name]
    parts = maps(channels, sides)
    convolving, kernel, bias, layer = make(sum(channels), 3)
    read = [each.clone().requires_grad_() for each in parts]
    wanted = layer(torch.cat(read, 1))
    upstream = torch.randn_like(wanted)
    wanted.backward(upstream)
    result = convolving.forward(parts, kernel, bias)
    torch.testing.assert_close(result, wanted)
    with torch.no_grad():
        found = convolving.backward(upstream, parts, kernel, Wanted(True, True, (over,) * len(parts)))
    for part, gradient, before in zip(parts, found.parts, read, strict=True):
        torch.testing.assert_close(gradient, before.grad)
        assert (gradient.data_ptr() == part.data_ptr()) == (over and name != "striding")
        if not over:
            assert torch.equal(part, before), "others need it"
    to_layer = torch.autograd.grad([kernel, bias], [layer.weight, layer.bias], [found.kernel, found.bias])
    torch.testing.assert_close(to_layer, (layer.weight.grad, layer.bias.grad))


@pytest.mark.parametrize("name", KINDS)
def test_gradients_that_nobody_wants_are_not_computed(name):
    make, channels = KINDS[name]
    parts = maps(channels, SIDES[1])
    convolving, kernel, bias, _ = make(sum(channels), 3)
    with torch.no_grad():
        upstream = torch.ones_like(convolving.forward(parts, kernel, bias))
        before = [each.clone() for each in parts]
        frozen = convolving.backward(upstream, parts, kernel, Wanted(True, False, (False,) * len(parts)))
        first = convolving.backward(upstream, parts, kernel, Wanted(False, True, (True,) * len(parts)))
    assert frozen.kernel is None and len(frozen.parts) == len(parts)
    assert first.kernel is not None and not first.parts
    assert all(torch.equal(each, old) for each, old in zip(parts, before, strict=True))


@pytest.mark.parametrize("normalised", [False, True], ids=["last", "normalised"])
@pytest.mark.parametrize("sides", SIDES, ids=str)
def test_a_block_that_adds_what_it_read_needs_it_only_once_more(sides, normalised):
    torch.manual_seed(0)
    layer = torch.nn.Conv3d(3, 3, 3, padding=1).double()
    norm, activation = torch.nn.InstanceNorm3d(3, affine=True).double(), torch.nn.PReLU().double()
    layers = [layer, norm, activation] if normalised else [layer]
    start = maps((3,), sides)[0]
    learned = [each for one in layers for each in one.parameters()]
    read = start.clone().requires_grad_()
    wanted = torch.nn.Sequential(*layers)(read) + read
    upstream = torch.randn_like(wanted)
    expected = torch.autograd.grad(wanted, [read, *learned], upstream)

    given = start.clone().requires_grad_()
    times = []

    def remake():
        times.append(1)
        return start.clone()

    following = Following(norm, activation) if normalised else None
    result = block(Smoothing(True), layer.weight, layer.bias, [given * 1], following, Sharing(remake=remake), adds=True)
    torch.testing.assert_close(result, wanted)
    assert not times
    found = torch.autograd.grad(result, [given, *learned], upstream)
    assert len(times) == 1
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)


def test_statistics_of_slabs_are_those_of_the_whole_map():
    torch.manual_seed(0)
    # a mean far from zero, which loses digits where squares are summed up; and a channel without any variance
    features = 1000 + torch.randn(2, 3, 64, 40, 36) * torch.tensor([1.0, 0.01, 0.0]).view(3, 1, 1, 1)
    norm, activation = torch.nn.InstanceNorm3d(3, affine=True), torch.nn.PReLU()
    layer = torch.nn.Conv3d(3, 3, 1, bias=False)
    torch.nn.init.dirac_(layer.weight)
    with torch.no_grad():
        found = block(Striding(ONE, (0, 0, 0), ONE), layer.weight, None, [features], Following(norm, activation))
        wanted = activation(functional.instance_norm(features.double(), eps=norm.eps).float())
    torch.testing.assert_close(found, wanted, rtol=0.02, atol=0.02)
    assert torch.isfinite(found).all()
