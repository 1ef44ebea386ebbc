"""Architectures as data, and the networks made of them."""

import json
import xml.etree.ElementTree as ElementTree

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from fl_app.config.space import DINTS_OPERATIONS, Operation
from fl_app.errors import ConfigError
from fl_app.networks.space.architecture import Architecture, check, read_architecture
from fl_app.networks.space.drawing import draw
from fl_app.networks.space.supernet import DiscreteNetwork, Supernet, weight_names
from fl_app.networks.space.topology import Edge, edges_of, fixed_edges
from fl_app.training.adapting import adapt_layers
from fl_app.training.layers import GuardedConv3d
from tests.architectures import random_architecture, space

torch.set_num_threads(1)
ALL = (*DINTS_OPERATIONS, "conv_3x3x1", "conv_3x1x3", "conv_1x3x3")
ROW = ("conv_3x3x3", None, None, None, None, None, None)
STRAIGHT = Architecture("free-3x3-c4-half", (ROW, ROW, ROW))


def changed(block, place, operation):
    """The straight network along the finest resolution, with one edge changed."""
    blocks = [list(row) for row in STRAIGHT.blocks]
    blocks[block][place] = operation
    return Architecture(STRAIGHT.space, tuple(map(tuple, blocks)))


def test_edges_are_in_the_order_of_monais_dints():
    assert edges_of(3) == (Edge(0, 0), Edge(1, 0), Edge(0, 1), Edge(1, 1), Edge(2, 1), Edge(1, 2), Edge(2, 2))
    assert [len(edges_of(depths)) for depths in (2, 3, 4)] == [4, 7, 10]


@pytest.mark.parametrize(("blocks", "depths"), [(4, 3), (5, 3), (6, 4), (9, 4), (2, 2)])
def test_a_u_net_of_any_size_is_a_network(blocks, depths):
    chosen = space(topology="unet", blocks=blocks, depths=depths)
    rows = tuple(tuple("conv_3x3x3" if on else None for on in row) for row in fixed_edges(chosen))
    network = Architecture(chosen.name, rows)
    assert check(network, chosen) is None
    assert network.targets(blocks - 1) == {0}
    assert network.targets(depths - 2) == set(range(depths))


def test_the_unet_topology_takes_no_other_edges():
    chosen = space(topology="unet", blocks=4)
    free = random_architecture(space(blocks=4), 0)
    assert "edges are not those" in check(Architecture(chosen.name, free.blocks), chosen)


@pytest.mark.parametrize(
    "settings",
    [{"operations": ("skip",)}, {"operations": ("skip", "skip", "conv_3x3x3")}, {"topology": "unet", "blocks": 3}],
)
def test_a_space_without_a_network_is_refused(settings):
    with pytest.raises(ValidationError, match=r"convolution|needs 4 blocks"):
        space(**settings)


@given(st.integers(0, 10_000))
@settings(max_examples=30, deadline=None)
def test_json_both_ways(seed):
    network = random_architecture(space(), seed)
    assert read_architecture(network.to_json(), space()) == network
    assert hash(read_architecture(network.to_json(), space())) == hash(network)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "no JSON"),
        ("[" * 100_000, "no JSON"),
        (" " * 200_000, "characters"),
        ("[]", "version"),
        ('{"version": 2, "space": "a", "blocks": []}', "version is not 1"),
        ('{"version": 1, "space": "a"}', "keys version, space and blocks"),
        ('{"version": 1, "space": "a", "blocks": [], "more": 1}', "no others"),
        ('{"version": 1, "space": "a", "blocks": {"0": []}}', "list of blocks"),
        ('{"version": 1, "space": "a", "blocks": [[1, 2]]}', "list of blocks"),
        ('{"version": 1, "space": "a", "blocks": []}', "search space 'a'"),
        (json.dumps({"version": 1, "space": STRAIGHT.space, "blocks": []}), "3 blocks of 7 edges"),
        (json.dumps({"version": 1, "space": STRAIGHT.space, "blocks": [ROW, ROW, ROW[:3]]}), "3 blocks of 7 edges"),
        (changed(1, 0, "eval").to_json(), "'eval'"),
        (changed(1, 0, "conv_3x3x1").to_json(), "the space has not"),
        (changed(1, 0, "skip").to_json(), "block 1 has no convolution"),
        (changed(1, 0, None).to_json(), "block 1 has no convolution"),
        (changed(1, 2, "skip").to_json(), "block 2 does not read just what block 1 feeds"),
        (changed(1, 1, "skip").to_json(), "block 1 does not read just what block 0 feeds"),
        (changed(2, 0, None).to_json().replace("null", '"conv_3x3x3"', 0), "block 2"),
    ],
)
def test_wrong_json_is_one_sentence(text, reason):
    with pytest.raises(ConfigError, match=reason) as raised:
        read_architecture(text, space())
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 300


def test_a_network_ends_at_the_finest_resolution():
    row = ("conv_3x3x3", None, "skip", None, None, None, None)
    down = (None, None, "conv_3x3x3", None, None, None, None)
    assert check(Architecture(STRAIGHT.space, (ROW, ROW, row)), space()) is None
    assert "finest" in check(Architecture(STRAIGHT.space, (ROW, ROW, down)), space())


def test_subsets():
    more = changed(2, 2, "skip")
    assert STRAIGHT.is_subset(more)
    assert not more.is_subset(STRAIGHT)
    assert STRAIGHT.is_subset(STRAIGHT)
    assert more.is_subset(changed(2, 2, "conv_3x3x3"))
    assert not changed(2, 2, "pseudo_3x3x1").is_subset(changed(2, 2, "conv_3x3x3"))
    assert not STRAIGHT.is_subset(Architecture("free-3x3-c8-half", STRAIGHT.blocks))


@given(st.integers(0, 10_000), st.integers(0, 10_000))
@settings(max_examples=10, deadline=None)
def test_a_subset_has_no_weight_of_its_own(first, second):
    small, large = (random_architecture(space(operations=("skip", "conv_3x3x3")), seed) for seed in (first, second))
    held = set(weight_names(space(), small)) <= set(weight_names(space(), large))
    assert held or not small.is_subset(large)
    merged = Architecture(
        small.space,
        tuple(
            tuple(theirs if mine in (None, "skip") and theirs else mine for mine, theirs in zip(*rows, strict=True))
            for rows in zip(small.blocks, large.blocks, strict=True)
        ),
    )
    assert small.is_subset(merged)


def test_drawing_is_svg_with_a_line_for_each_edge():
    chosen = space(operations=ALL)
    network = random_architecture(chosen, 3)
    root = ElementTree.fromstring(draw(network, chosen))
    assert root.tag.endswith("svg")
    groups = [each for each in root if each.tag.endswith("}g")]
    assert [each[0].text for each in groups] == [f"block {b + 1}: {name}" for b, _, _, name in network.active]
    assert "1/8, 16 ch." in [each.text for each in root]


def test_every_operation_can_be_drawn_and_built():
    assert set(Operation.__args__) == set(ALL)
    for name in ALL[1:]:
        chosen = space(operations=("skip", name))
        network = Architecture(chosen.name, ((name, *[None] * 6),) * 3)
        assert DiscreteNetwork(chosen, network, 1)(torch.randn(1, 1, 16, 16, 16)).shape == (1, 2, 16, 16, 16)
        assert f"block 2: {name}" in draw(network, chosen)


# the networks


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("stem", [True, False])
def test_a_network_of_its_own_computes_what_the_supernet_does_to_the_bit(seed, stem):
    chosen = space(downsampling_stem=stem, operations=ALL, blocks=4)
    network = random_architecture(chosen, seed)
    supernet = Supernet(chosen, organs=2, seed=seed)
    alone = DiscreteNetwork(chosen, network, organs=2, seed=99)
    names = set(alone.state_dict())
    assert names == set(weight_names(chosen, network))
    alone.load_state_dict({name: value for name, value in supernet.state_dict().items() if name in names})
    image = torch.randn(1, 1, 16, 16, 16)
    for training in (True, False):
        wanted, found = supernet.train(training)(image, network), alone.train(training)(image)
        assert torch.equal(wanted, found)
        supernet.zero_grad(), alone.zero_grad()
        wanted.square().sum().backward(), found.square().sum().backward()
        gradients = {name: value.grad for name, value in supernet.named_parameters() if value.grad is not None}
        assert gradients.keys() == names
        assert all(torch.equal(gradients[name], value.grad) for name, value in alone.named_parameters())


def test_the_same_seed_gives_the_same_weights_and_leaves_the_random_stream():
    torch.manual_seed(5)
    wanted = torch.rand(3)
    torch.manual_seed(5)
    first, second = Supernet(space(), 1, seed=1), Supernet(space(), 1, seed=1)
    assert torch.equal(torch.rand(3), wanted)
    assert all(
        torch.equal(a, b) for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    )


def test_the_mixture_is_the_architecture_where_its_weights_are_zero_and_one():
    chosen = space(operations=("skip", "conv_3x3x3"), blocks=2)
    supernet = Supernet(chosen, 1).eval()
    for seed in range(3):
        network = random_architecture(chosen, seed)
        edges = torch.tensor([[float(name is not None) for name in row] for row in network.blocks])
        shares = torch.tensor(
            [[[float(name == each) for each in chosen.operations] for name in row] for row in network.blocks]
        )
        image = torch.randn(1, 1, 16, 16, 16)
        # what does not reach the last block counts as zero, and stays zero in normalisation layers of fresh weights
        assert torch.allclose(supernet.forward_mixed(image, edges, shares), supernet(image, network), atol=1e-5)


@pytest.mark.parametrize("topology", ["free", "unet"])
def test_the_smallest_patch_fits_and_convolutions_can_be_guarded(topology):
    chosen = space(topology=topology, blocks=4)
    supernet = adapt_layers(Supernet(chosen, 1))
    assert {type(each) for each in supernet.modules() if isinstance(each, torch.nn.Conv3d)} == {GuardedConv3d}
    multiple = chosen.patch_multiple
    image = torch.randn(1, 1, multiple, multiple, 2 * multiple)
    with torch.autocast("cpu", torch.bfloat16):
        logits = supernet(image, random_architecture(chosen, 1))
    assert logits.shape == (1, 2, *image.shape[2:])
    logits.float().sum().backward()
    assert all(value.grad is None or value.grad.isfinite().all() for value in supernet.parameters())


def test_a_network_of_another_space_is_refused():
    with pytest.raises(ConfigError, match="search space"):
        DiscreteNetwork(space(channels=8), random_architecture(space(), 0), 1)
