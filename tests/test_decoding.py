"""The best network in a budget: against trying every network, and against MONAI's decoder."""

import math
import re
import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.networks.nets.dints import TopologySearch

from fl_app.errors import BudgetError, ConfigError
from fl_app.networks.space.architecture import check
from fl_app.networks.space.decoding import Scores, choices_of, decode, least_network
from fl_app.networks.space.memory import MemoryModel
from fl_app.networks.space.topology import edges_of
from tests.architectures import every_architecture, random_architecture, space

SMALL = space(blocks=2, depths=2, operations=("skip", "conv_3x3x3", "pseudo_3x1x3"))
MIDDLE = space(blocks=4, depths=3)
UNET = space(topology="unet", blocks=4, operations=("conv_3x3x3", "conv_3x3x1", "pseudo_3x3x1"))


def model(chosen, **settings):
    return MemoryModel(chosen, **{"organs": 1, "patch": (16, 16, 32)} | settings)


def random_scores(chosen, seed):
    chance = np.random.default_rng(seed)
    shape = (chosen.blocks, len(edges_of(chosen.depths)))
    return Scores(chance.normal(size=shape), chance.normal(size=(*shape, len(chosen.operations))))


@pytest.fixture(scope="module")
def everything():
    found = every_architecture(SMALL)
    assert len(found) > 10_000
    return found


@pytest.mark.parametrize("recompute", [False, True])
def test_the_least_network_is_the_least_of_all(everything, recompute):
    memory = model(SMALL, recompute=recompute)
    assert memory.total(least_network(memory)) == pytest.approx(min(map(memory.total, everything)))


@pytest.mark.parametrize(("seed", "recompute"), [(0, False), (1, True)])
def test_it_is_the_best_of_all_networks_in_the_budget(everything, seed, recompute):
    memory, scores = model(SMALL, recompute=recompute), random_scores(SMALL, seed)
    sizes = np.array([memory.total(each) for each in everything])
    # each network's value by DiNTS's probabilities, not by the code under test
    chance = 1 / (1 + np.exp(-scores.edges))
    shares = np.exp(scores.operations) / np.exp(scores.operations).sum(-1, keepdims=True)
    regret = np.log(shares / shares.max(-1, keepdims=True))

    def value(network):
        places = range(len(edges_of(SMALL.depths)))
        return sum(
            math.log(1 - chance[b, p]) if network.blocks[b][p] is None
            else math.log(chance[b, p]) + regret[b, p, SMALL.operations.index(network.blocks[b][p])]
            for b in range(SMALL.blocks)
            for p in places
        )  # fmt: skip

    values = np.array([value(each) for each in everything])
    best = decode(scores, memory)
    assert value(best) == pytest.approx(values.max())
    for share in (0.0, 0.05, 0.2, 0.5, 0.8, 1.0):
        budget = sizes.min() + share * (sizes.max() - sizes.min())
        found = decode(scores, memory, budget)
        assert memory.total(found) <= budget
        # rounded up at each resolution of each block, and at both stems
        rounding = (budget - memory.fixed) / 1000 * (SMALL.blocks * SMALL.depths + 2)
        assert value(found) >= values[sizes <= budget - rounding].max(initial=-math.inf) - 1e-9
        assert value(found) <= values[sizes <= budget].max() + 1e-9


def test_supersets_are_the_best_of_all_supersets(everything):
    memory, scores = model(SMALL), random_scores(SMALL, 7)
    core = random_architecture(SMALL, 3)
    larger = [each for each in everything if core.is_subset(each)]
    assert 1 < len(larger) < len(everything)
    found = decode(scores, memory, must_contain=core)
    assert core.is_subset(found)
    assert scores.value(found, SMALL) == pytest.approx(max(scores.value(each, SMALL) for each in larger))


@pytest.mark.parametrize("seed", range(5))
def test_it_is_monais_where_no_budget_and_no_rule_of_ours_binds(seed, capsys):
    chosen = space(blocks=4, depths=3)
    scores = random_scores(chosen, seed)
    scores.operations[..., 0] = -20  # MONAI would have cells that only skip
    scores.edges[-1, :2] += 3  # and would end anywhere
    with torch.random.fork_rng():
        monai = TopologySearch(channel_mul=0.125, num_blocks=chosen.blocks, num_depths=chosen.depths)
    capsys.readouterr()
    with torch.no_grad():
        monai.log_alpha_a.copy_(torch.from_numpy(scores.edges))
        monai.log_alpha_c.copy_(torch.from_numpy(scores.operations))
    _, edges, operations, _ = monai.decode()
    wanted = [
        [chosen.operations[operations[b, p]] if edges[b, p] else None for p in range(edges.shape[1])]
        for b in range(chosen.blocks)
    ]
    assert decode(scores, model(chosen)).blocks == tuple(map(tuple, wanted))


@given(st.integers(0, 10_000), st.floats(0, 1), st.sampled_from([MIDDLE, UNET]), st.sampled_from([2, 4]), st.booleans())
@settings(max_examples=20, deadline=None)
def test_no_network_exceeds_its_budget(seed, share, chosen, value_bytes, recompute):
    fitted = {"value_bytes": value_bytes, "scale": 1.07, "offset": 12345.0, "recompute": recompute}
    memory, scores = model(chosen, **fitted), random_scores(chosen, seed)
    least, free = memory.total(least_network(memory)), memory.total(decode(scores, memory))
    budget = least + share * max(0, free - least)
    found = decode(scores, memory, budget)
    assert check(found, chosen) is None
    assert memory.total(found) <= budget
    assert found == decode(scores, memory, budget)
    if free * 0.5 > least:
        assert 0.3 * free <= memory.total(decode(scores, memory, free, at_least=0.3 * free)) <= free


@given(st.integers(0, 10_000), st.floats(0, 1))
@settings(max_examples=10, deadline=None)
def test_nested_networks_hold_the_core_and_keep_the_budget(seed, share):
    memory, scores, core = model(MIDDLE), random_scores(MIDDLE, seed), random_architecture(MIDDLE, seed)
    low, high = memory.total(core), memory.total(decode(scores, memory, must_contain=core))
    budget = low + share * (high - low)
    found = decode(scores, memory, max(budget, low), must_contain=core)
    assert core.is_subset(found)
    assert check(found, MIDDLE) is None
    assert memory.total(found) <= max(budget, low)


@pytest.mark.parametrize("core", [None, random_architecture(MIDDLE, 5)])
def test_a_budget_that_is_too_small_names_the_least_that_works(core):
    memory, scores = model(MIDDLE), random_scores(MIDDLE, 0)
    for budget in (0, -1, memory.fixed, memory.total(least_network(memory, core)) - 1):
        with pytest.raises(BudgetError, match=r"no network .* least .* is [\d.]+ MiB: ") as raised:
            decode(scores, memory, budget, must_contain=core)
        for enough in (raised.value.least_bytes, float(re.search(r"is ([\d.]+) MiB", str(raised.value))[1]) * 2**20):
            assert memory.total(decode(scores, memory, enough, must_contain=core)) <= enough


def test_networks_that_are_all_too_small_are_an_error():
    memory, scores = model(MIDDLE), random_scores(MIDDLE, 0)
    with pytest.raises(ConfigError, match="takes between"):
        decode(scores, memory, 2**40, at_least=2**39)


def test_a_large_space_is_decoded_soon():
    large = space(blocks=12, depths=4)
    memory, scores = model(large, patch=(64, 64, 64)), random_scores(large, 1)
    free = memory.total(decode(scores, memory))
    taken = []
    for share in (0.5, 0.7, 0.9):
        started = time.process_time()
        found = decode(scores, memory, share * free)
        taken.append(time.process_time() - started)
        assert 0.97 * share * free < memory.total(found) <= share * free
    assert min(taken) < 0.5


def test_what_a_space_allows():
    assert choices_of(UNET)[0][1] == (None,)
    assert choices_of(UNET)[0][0] == UNET.operations
    assert choices_of(MIDDLE)[0][0] == (None, *MIDDLE.operations)
