"""DiNTS's gradient search, and the scores of untrained networks."""

import io
import itertools
import math

import pytest
import torch
from monai.networks.nets.dints import TopologySearch
from torch import nn

from fl_app.config import Job
from fl_app.data.cases import Case
from fl_app.data.preparation import prepare_cases
from fl_app.errors import DataError
from fl_app.networks.space.architecture import check
from fl_app.networks.space.decoding import least_network
from fl_app.networks.space.memory import MemoryModel
from fl_app.networks.space.sampling import NetworkSampler
from fl_app.networks.space.supernet import DiscreteNetwork, Supernet
from fl_app.networks.space.topology import fixed_edges
from fl_app.search.gradient import GradientSearch, Logits
from fl_app.search.zero_cost import naswot, synflow
from tests.architectures import random_architecture, space
from tests.volumes import SPACING_MM, make_ct, write_nifti

torch.set_num_threads(1)
CPU = torch.device("cpu")
SPACE = space(blocks=2, depths=2, operations=("skip", "conv_3x3x3"))
MEMORY = MemoryModel(SPACE, 1, (16, 16, 16))


def job(**training):
    return Job.model_validate(
        {
            "data": {"spacing_mm": SPACING_MM, "patch_voxels": (16, 16, 16)},
            "network": {"channels": (4, 8)},
            "training": {"learning_rate": 0.01, "batch_size": 1, "precision": "fp32"} | training,
        }
    )


@pytest.fixture(scope="module")
def cases(tmp_path_factory):
    folder, made = tmp_path_factory.mktemp("cases"), []
    for seed in range(3):
        image, label = make_ct(seed)
        files = write_nifti(folder / f"{seed}_ct.nii.gz", image), write_nifti(folder / f"{seed}_label.nii.gz", label)
        made.append(Case(str(seed), *files))
    return prepare_cases(made, job().data, None)


def search(cases, budget_share=0.6, warm_up=0.5):
    budget = budget_share * MEMORY.total(NetworkSampler(MEMORY).largest)
    chosen = job()
    chosen = chosen.model_copy(update={"search": chosen.search.model_copy(update={"warm_up_share": warm_up})})
    return GradientSearch(chosen, MEMORY, budget, cases, CPU, "site-1")


def random_logits(chosen, seed):
    logits = Logits(chosen)
    generator = torch.Generator().manual_seed(seed)
    logits.edges.data = torch.randn(logits.edges.shape, generator=generator)
    logits.operations.data = torch.randn(logits.operations.shape, generator=generator)
    return logits


# the losses


def test_probabilities_are_those_of_patterns_of_edges():
    logits = random_logits(SPACE, 0)
    active = logits.edges[0].sigmoid().tolist()
    patterns = [p for p in itertools.product((0, 1), repeat=4) if any(p)]
    joint = {p: math.prod(a if on else 1 - a for a, on in zip(active, p, strict=True)) for p in patterns}
    total = sum(joint.values())
    found = logits.pattern_log_probabilities().exp()[0].tolist()
    for pattern, chance in zip(logits.patterns.int().tolist(), found, strict=True):
        assert chance == pytest.approx(joint[tuple(pattern)] / total, rel=1e-5)
    edge = sum(chance for pattern, chance in joint.items() if pattern[1]) / total
    assert logits.edge_probabilities()[0, 1].item() == pytest.approx(edge, rel=1e-5)


def test_topology_loss_is_monais(capsys):
    chosen = space(blocks=3, depths=3)
    logits = random_logits(chosen, 1)
    with torch.random.fork_rng():
        monai = TopologySearch(channel_mul=0.125, num_blocks=3, num_depths=3)
    capsys.readouterr()
    monai.log_alpha_a.data = logits.edges.data.clone()
    chances, _ = monai.get_prob_a(child=True)
    assert logits.topology_loss().item() == pytest.approx(monai.get_topology_entropy(chances).item(), rel=1e-3)


def test_entropy_runs_from_two_to_zero_and_has_a_gradient_worth_the_name():
    undecided = Logits(SPACE)
    assert undecided.entropy().item() == pytest.approx(2, abs=1e-5)
    large = Logits(space(blocks=2, depths=4))
    assert large.entropy().item() == pytest.approx(2, abs=1e-2)
    decided = random_logits(SPACE, 0)
    decided.edges.data = decided.edges.data.sign() * 30
    decided.operations.data = 30 * torch.eye(2)[torch.zeros(2, 4, dtype=torch.long)]
    assert decided.entropy().item() == pytest.approx(0, abs=1e-4)
    nearly = random_logits(space(blocks=2, depths=4), 0)
    nearly.entropy().backward()
    assert float(nearly.edges.grad.abs().max()) > 0.005


def test_expected_memory_of_a_decided_search_is_the_networks_but_for_its_stems():
    network = random_architecture(SPACE, 3)
    logits = Logits(SPACE)
    on = torch.tensor([[name is not None for name in row] for row in network.blocks])
    logits.edges.data = on.float() * 80 - 40
    logits.operations.data = torch.tensor(
        [[[80.0 * (name == o) for o in SPACE.operations] for name in row] for row in network.blocks]
    )
    stems = MEMORY.inputs(network.sources(0)) + MEMORY.outputs(network.targets(1))
    assert logits.memory(MEMORY).item() == pytest.approx(MEMORY.total(network) - stems, rel=1e-5)


def test_fixed_edges_do_not_learn():
    chosen = space(topology="unet", blocks=2, depths=2)
    logits = Logits(chosen)
    logits.learn()
    assert not logits.edges.requires_grad
    assert ((logits.edges > 0).tolist()) == [list(row) for row in fixed_edges(chosen)]
    assert logits.entropy().item() == pytest.approx(1, abs=1e-3)


# the search


def test_weights_learn_first_then_logits_far_enough_to_decide(cases):
    engine = search(cases, warm_up=0.5)
    start = engine.shared_values()
    first = engine.search(1, 3, 2)
    assert math.isnan(first.validation_loss)
    assert float(engine.logits.edges.abs().max()) == 0
    assert any(not torch.equal(start[name], value) for name, value in engine.shared_values().items())
    second = engine.search(2, 3, 2)
    assert second.validation_loss > 0
    assert second.entropy < first.entropy
    assert float(engine.logits.edges.abs().max()) > 1
    network = engine.decode()
    assert check(network, SPACE) is None
    assert MEMORY.total(network) <= engine.budget


def test_what_is_kept_for_a_restart_goes_on_bit_for_bit(cases):
    whole, ended, again = (search(cases, warm_up=0.0) for _ in range(3))
    whole.search(1, 3, 2)
    whole.search(2, 3, 2)
    ended.search(1, 3, 2)
    kept = io.BytesIO()
    torch.save(ended.optimizer_state(), kept)
    kept.seek(0)
    again.load(ended.shared_values())
    again.restore_optimizer(torch.load(kept, weights_only=True))
    again.search(2, 3, 2)
    assert torch.equal(again.logits.edges, whole.logits.edges)
    assert torch.equal(again.logits.operations, whole.logits.operations)
    values = whole.shared_values()
    assert all(torch.equal(values[name], value) for name, value in again.shared_values().items())


def test_logits_never_travel(cases):
    engine = search(cases)
    names = set(Supernet(SPACE, 1).state_dict())
    assert set(engine.shared_values()) | set(engine.local_values()) | set(engine.all_values()) == names


def test_logit_steps_leave_the_weights_alone_and_use_other_cases(cases):
    # the weights' half is case 0 in all of them; the logits' half is not
    without, other, another = (
        search([cases[0], cases[held]], warm_up=warm_up) for held, warm_up in ((1, 1.0), (1, 0.0), (2, 0.0))
    )
    losses = [engine.search(1, 1, 1).validation_loss for engine in (without, other, another)]
    values = without.shared_values()
    for engine in (other, another):
        assert all(torch.equal(values[name], value) for name, value in engine.shared_values().items())
        assert float(engine.logits.edges.detach().abs().max()) > 0
    assert math.isnan(losses[0])
    assert losses[1] != losses[2]


def test_memory_is_pulled_towards_the_budget(cases):
    spent = []
    for share in (0.3, 3.0):
        engine = search(cases, budget_share=share, warm_up=0.0)
        spent.append(engine.search(1, 16, 1).expected_bytes)
    assert spent[0] < spent[1]


def test_one_case_cannot_be_halved(cases):
    with pytest.raises(DataError, match="two training cases"):
        search(cases[:1])


# zero-cost scores


def test_synflow_of_a_linear_network_is_the_sum_over_paths():
    network = nn.Sequential(nn.Conv3d(1, 2, 1, bias=False), nn.InstanceNorm3d(2), nn.Conv3d(2, 1, 1, bias=False))
    network[0].weight.data = torch.tensor([-2.0, 3.0]).reshape(2, 1, 1, 1, 1)
    network[2].weight.data = torch.tensor([5.0, -7.0]).reshape(1, 2, 1, 1, 1)
    # R = 8 voxels * (2 * 5 + 3 * 7); each of the two layers contributes R
    assert synflow(network, (2, 2, 2)) == pytest.approx(math.log(2 * 8 * 31))
    assert float(network[0].weight.min()) == -2


def test_naswot_is_larger_where_images_are_told_apart():
    blind = nn.Sequential(nn.Conv3d(1, 8, 1), nn.ReLU())
    nn.init.zeros_(blind[0].weight)
    seeing = nn.Sequential(nn.Conv3d(1, 8, 1), nn.ReLU())
    images = torch.randn(3, 1, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    assert naswot(blind, images) == -math.inf
    assert naswot(seeing, images) > -10
    same, different = images[:1].repeat(2, 1, 1, 1, 1), images[:2]
    assert naswot(seeing, same) < naswot(seeing, different)


def test_scores_of_networks_of_the_space_leave_them_as_they_were():
    network = DiscreteNetwork(SPACE, random_architecture(SPACE, 2), 1)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    images = torch.randn(2, 1, 16, 16, 16, generator=torch.Generator().manual_seed(0))
    assert math.isfinite(synflow(network, (16, 16, 16)))
    assert math.isfinite(naswot(network, images))
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
    assert all(value.grad is None for value in network.parameters())
    smallest = DiscreteNetwork(SPACE, least_network(MEMORY), 1)
    largest = DiscreteNetwork(SPACE, NetworkSampler(MEMORY).largest, 1)
    assert synflow(largest, (16, 16, 16)) > synflow(smallest, (16, 16, 16))
