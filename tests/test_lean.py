"""What a U-Net is made of when it is trained in little memory, against MONAI's own blocks in double precision."""

import copy
from contextlib import nullcontext

import pytest
import torch
from monai.networks.blocks.acti_norm import ADN
from monai.networks.blocks.convolutions import Convolution
from monai.networks.nets.unet import UNet
from monai.optimizers.novograd import Novograd

from fl_app.config import TrainingSettings
from fl_app.training.adapting import adapt_layers
from fl_app.training.cost import training_memory
from fl_app.training.dice_ce import DiceCrossEntropy
from fl_app.training.lean import make_lean
from fl_app.training.novograd import SlabbedNovograd
from fl_app.training.recompute import recompute

INSTANCE = ("instance", {"affine": True})


def unet(**settings):
    given = {"channels": (3, 6, 9), "strides": (2, 2), "num_res_units": 2, "norm": INSTANCE} | settings
    return UNet(3, 1, 3, **given).double()


def moved(network):
    """The network with no weight where it starts, so that each one's part in the result shows."""
    with torch.no_grad():
        for each in network.parameters():
            each.add_(0.2 * torch.randn_like(each))
    return network


def gradients(network, loss, images, labels):
    value = loss(network(images), labels)
    value.backward()
    return value, {name: each.grad for name, each in network.named_parameters()}


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"num_res_units": 0},
        {"num_res_units": 1, "norm": ("instance", {})},
        {"norm": ("group", {"num_groups": 3})},
        {"act": "relu"},
        {"act": ("prelu", {"num_parameters": 1, "init": -0.1})},
        {"dropout": 0.2},
        {"adn_ordering": "NA"},
        {"adn_ordering": "AN", "act": "leakyrelu"},
        {"channels": (3, 3, 3)},
        {"channels": (18, 20, 22), "up_kernel_size": 5},
        {"strides": (2, 1)},
    ],
    ids=str,
)
@pytest.mark.parametrize("patch", [(1, 16, 12, 8), (2, 48, 16, 20)], ids=str)
def test_gradients_are_those_of_the_plain_network(settings, patch):
    torch.manual_seed(0)
    plain = moved(unet(**settings))
    lean = recompute(adapt_layers(copy.deepcopy(plain)))
    count, *sides = patch
    images, labels = torch.randn(count, 1, *sides, dtype=torch.double), torch.randint(0, 3, (count, 1, *sides))
    torch.manual_seed(1)
    wanted, slopes = gradients(plain, DiceCrossEntropy(), images, labels)
    torch.manual_seed(1)
    found, same = gradients(lean, DiceCrossEntropy(overwrite=True), images, labels)
    assert found.item() == pytest.approx(wanted.item(), abs=1e-9)
    for name, slope in slopes.items():
        torch.testing.assert_close(same[name], slope, rtol=1e-6, atol=1e-8, msg=name)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last_3d], ids=str)
@pytest.mark.parametrize("shape", [(1, 2, 5, 4, 3), (3, 4, 40, 48, 36)], ids=str)
def test_normalisation_and_activation_have_their_gradients_in_any_layout(layout, shape):
    torch.manual_seed(0)
    plain = moved(ADN(in_channels=shape[1], act="PRELU", norm=INSTANCE, norm_dim=3, dropout=0.0).double())
    lean = copy.deepcopy(plain)
    make_lean(lean)
    assert lean.following
    upstream = torch.randn(shape, dtype=torch.double)
    features = torch.randn(shape, dtype=torch.double).to(memory_format=layout)
    wanted, found = (features.clone().requires_grad_() for _ in range(2))
    (plain(wanted) * upstream).sum().backward()
    (lean(found * 1) * upstream).sum().backward()  # what it reads it overwrites
    torch.testing.assert_close(found.grad, wanted.grad)
    for one, other in zip(plain.parameters(), lean.parameters(), strict=True):
        torch.testing.assert_close(other.grad, one.grad)


def test_rounding_takes_it_no_farther_from_the_true_gradients_than_the_plain_network():
    torch.manual_seed(0)
    exact = moved(unet(channels=(4, 8, 16)))
    images, labels = torch.randn(1, 1, 48, 32, 24), torch.randint(0, 3, (1, 1, 48, 32, 24))
    _, wanted = gradients(exact, DiceCrossEntropy(), images.double(), labels)
    largest = max(each.norm() for each in wanted.values())
    plain = adapt_layers(copy.deepcopy(exact).float())
    lean = recompute(copy.deepcopy(plain))
    far = {}
    for name, network, loss in (("plain", plain, DiceCrossEntropy()), ("lean", lean, DiceCrossEntropy(overwrite=True))):
        with torch.autocast("cpu", torch.bfloat16):
            logits = network(images)
        loss(logits, labels).backward()
        far[name] = max((each.grad - wanted[key]).norm() / largest for key, each in network.named_parameters())
    assert far["lean"] <= 1.5 * far["plain"] < 0.5, far


@pytest.mark.parametrize("frozen", ["model.0", "model.1.submodule.0", "model.2.0", "model.2.1"])
def test_frozen_blocks_leave_the_gradients_of_the_others_as_they_are(frozen):
    torch.manual_seed(0)
    plain = moved(unet(channels=(3, 4, 5, 6), strides=(2, 2, 2)))
    for name, each in plain.named_parameters():
        each.requires_grad_(not name.startswith(frozen))
    lean = recompute(adapt_layers(copy.deepcopy(plain)))
    images, labels = torch.randn(1, 1, 48, 16, 16, dtype=torch.double), torch.randint(0, 3, (1, 1, 48, 16, 16))
    _, wanted = gradients(plain, DiceCrossEntropy(), images, labels)
    _, found = gradients(lean, DiceCrossEntropy(overwrite=True), images, labels)
    for name, slope in wanted.items():
        if name.startswith(frozen):
            assert found[name] is None
        else:
            torch.testing.assert_close(found[name], slope, rtol=1e-6, atol=1e-8, msg=name)


def test_gradients_of_several_batches_add_up():
    torch.manual_seed(0)
    plain = moved(unet())
    lean = recompute(adapt_layers(copy.deepcopy(plain)))
    for _ in range(2):
        images, labels = torch.randn(1, 1, 16, 16, 8, dtype=torch.double), torch.randint(0, 3, (1, 1, 16, 16, 8))
        _, wanted = gradients(plain, DiceCrossEntropy(), images, labels)
        before = images.clone().requires_grad_()
        _, found = gradients(lean, DiceCrossEntropy(overwrite=True), before, labels)
    for name, slope in wanted.items():
        torch.testing.assert_close(found[name], slope, rtol=1e-6, atol=1e-8, msg=name)
    [to_images] = torch.autograd.grad(DiceCrossEntropy()(plain(again := images.requires_grad_()), labels), again)
    torch.testing.assert_close(before.grad, to_images)


def test_a_step_holds_two_maps_of_the_first_level_and_two_of_the_result():
    torch.manual_seed(0)
    network = recompute(adapt_layers(unet(channels=(16, 16, 16)).float()))
    patch = (64, 64, 32)
    settings = TrainingSettings(recompute=True, early_update=True)
    taken = training_memory(network, patch, 1, torch.device("cpu"), "fp32", settings)
    first = 4 * 16 * 32 * 32 * 16  # bytes
    logits = 4 * 3 * 64 * 64 * 32
    image = 4 * 64 * 64 * 32
    assert taken.peak - taken.parameters - taken.optimizer - image < 2.6 * (first + logits)


def test_a_loss_that_may_overwrites_the_logits_with_their_gradient():
    torch.manual_seed(0)
    start, labels = torch.randn(1, 3, 8, 8, 8), torch.randint(0, 3, (1, 1, 8, 8, 8))
    kept, given = start.clone().requires_grad_(), start.clone().requires_grad_()
    DiceCrossEntropy()(kept, labels).backward()
    logits = given * 1
    DiceCrossEntropy(overwrite=True)(logits, labels).backward()
    assert torch.equal(given.grad, kept.grad) and torch.equal(logits, kept.grad)


def test_blocks_that_are_computed_again_already_are_left_as_they_are():
    network = recompute(adapt_layers(unet()))
    kinds = [type(each) for each in network.modules()]
    assert [type(each) for each in recompute(network).modules()] == kinds
    inner = network.model[-1][-1].conv[0]
    assert type(inner) is Convolution, "a block's own parts are computed again with it, not by themselves as well"


def test_the_same_step_gives_the_same_gradients_bit_for_bit():
    torch.manual_seed(0)
    networks = [recompute(adapt_layers(unet(channels=(8, 16, 32)).float()))]
    networks.append(copy.deepcopy(networks[0]))
    images, labels = torch.randn(2, 1, 48, 40, 24), torch.randint(0, 3, (2, 1, 48, 40, 24))
    with torch.autocast("cpu", torch.bfloat16):
        _, one = gradients(networks[0], DiceCrossEntropy(overwrite=True), images, labels)
        _, other = gradients(networks[1], DiceCrossEntropy(overwrite=True), images, labels)
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("decay", [0.0, 0.1])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last_3d], ids=str)
def test_novograd_in_slabs_moves_weights_as_in_one_piece(decay, layout):
    torch.manual_seed(0)
    start = torch.nn.Conv3d(70, 90, 3).to(memory_format=layout)
    networks = [copy.deepcopy(start) for _ in range(2)]
    kinds = (Novograd, SlabbedNovograd)
    optimizers = [
        kind(net.parameters(), lr=0.01, weight_decay=decay) for kind, net in zip(kinds, networks, strict=True)
    ]
    for _ in range(5):
        upstream = [torch.randn_like(each) for each in start.parameters()]
        for network, optimizer in zip(networks, optimizers, strict=True):
            for weight, gradient in zip(network.parameters(), upstream, strict=True):
                weight.grad = gradient.clone()
            with optimizer.slab_by_slab() if isinstance(optimizer, SlabbedNovograd) else nullcontext():
                optimizer.step()
    for before, whole, slabs in zip(start.parameters(), *(each.parameters() for each in networks), strict=True):
        assert (slabs - whole).norm() <= 1e-2 * (whole - before).norm(), "the momentum is in 8 bits"
    for state, other in zip(*(each.state.values() for each in optimizers), strict=True):
        assert state["step"] == other["step"] == 5
        torch.testing.assert_close(state["exp_avg_sq"], other["exp_avg_sq"], rtol=1e-5, atol=0)
        assert other["exp_avg"].dtype == torch.int8
