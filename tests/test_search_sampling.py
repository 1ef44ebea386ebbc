"""Drawing networks in a budget, and training the supernet along them."""

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fl_app.config import Job
from fl_app.data.cases import Case
from fl_app.data.preparation import prepare_cases
from fl_app.errors import BudgetError, DataError
from fl_app.networks.space.architecture import check
from fl_app.networks.space.memory import MemoryModel
from fl_app.networks.space.sampling import NetworkSampler, sample_paths
from fl_app.networks.space.supernet import DiscreteNetwork, supernet_size, weight_names, weight_sizes
from fl_app.search.sampling import SupernetTrainer
from fl_app.training.trainer import Trainer
from tests.architectures import every_architecture, random_architecture, space
from tests.volumes import SPACING_MM, make_ct, write_nifti

torch.set_num_threads(1)
CPU = torch.device("cpu")
SPACE = space(blocks=3, depths=2)
MEMORY = MemoryModel(SPACE, 1, (16, 16, 16))


def sampler(share=0.6, **settings):
    largest = MEMORY.total(NetworkSampler(MEMORY).largest)
    return NetworkSampler(MEMORY, share * largest, **settings)


def draws(count, seed=0, **settings):
    chance, drawn = np.random.default_rng(seed), sampler(**settings)
    return [drawn.draw(chance) for _ in range(count)]


def test_every_child_of_two_networks_is_as_likely():
    tiny = space(blocks=2, depths=2, operations=("skip", "conv_3x3x3"))
    memory, everything = MemoryModel(tiny, 1, (16, 16, 16)), every_architecture(tiny)
    drawn, chance = NetworkSampler(memory), np.random.default_rng(0)
    mother, father = random_architecture(tiny, 1), random_architecture(tiny, 2)

    def is_child(network):
        rows = zip(network.blocks, mother.blocks, father.blocks, strict=True)
        return all(own in (hers, his) for row in rows for own, hers, his in zip(*row, strict=True))

    wanted = {each for each in everything if is_child(each)}
    assert 15 < len(wanted) < 60
    counts = Counter(drawn.cross(mother, father, chance) for _ in range(20 * len(wanted)))
    assert set(counts) == wanted
    # chi squared, far in the tail for anything but the uniform distribution
    assert sum((count - 20) ** 2 / 20 for count in counts.values()) < 2 * len(wanted)


def test_draws_are_valid_within_the_budget_and_of_all_sizes():
    drawn = sampler()
    found = draws(40)
    sizes = [MEMORY.total(each) for each in found]
    assert all(check(each, SPACE) is None for each in found)
    assert max(sizes) <= drawn.budget
    assert len(set(found)) > 20
    low, high = MEMORY.total(drawn.smallest), drawn.budget
    assert np.histogram(sizes, bins=3, range=(low, high))[0].min() >= 3
    floor = (low + high) / 2
    assert np.quantile([MEMORY.total(each) for each in draws(40, least=floor)], 0.1) > 0.95 * floor


def test_the_smallest_and_the_largest_bound_every_network_in_the_budget():
    tiny = space(blocks=2, depths=2, operations=("skip", "conv_3x3x3"))
    memory = MemoryModel(tiny, 1, (16, 16, 16))
    sizes = sorted(map(memory.total, every_architecture(tiny)))
    budget = (sizes[0] + sizes[-1]) / 2
    drawn = NetworkSampler(memory, budget)
    assert memory.total(drawn.smallest) == sizes[0]
    fitting = max(size for size in sizes if size <= budget)
    assert 0.97 * fitting <= memory.total(drawn.largest) <= fitting
    with pytest.raises(BudgetError, match="least"):
        NetworkSampler(memory, sizes[0] - 1)


def test_the_stream_alone_decides():
    assert draws(5, seed=3) == draws(5, seed=3)
    assert draws(5, seed=3) != draws(5, seed=4)


@given(st.integers(0, 1000))
@settings(max_examples=15, deadline=None)
def test_mutants_and_crosses_are_networks_in_the_budget(seed):
    chance, drawn = np.random.default_rng(seed), sampler()
    mother, father = drawn.draw(chance), drawn.draw(chance)
    mutant, child = drawn.mutate(mother, chance), drawn.cross(mother, father, chance)
    for each in (mutant, child):
        assert check(each, SPACE) is None
        assert MEMORY.total(each) <= drawn.budget
    assert sum(mine != theirs for mine, theirs in zip(mutant.blocks, mother.blocks, strict=True)) <= 2
    for rows in zip(child.blocks, mother.blocks, father.blocks, strict=True):
        assert all(own in (hers, his) for own, hers, his in zip(*rows, strict=True))


def test_what_is_drawn_holds_the_core():
    core = sampler(share=0.4).draw(np.random.default_rng(5))
    drawn, chance = sampler(share=0.8, must_contain=core), np.random.default_rng(0)
    found = [drawn.smallest, drawn.largest, *(drawn.draw(chance) for _ in range(5))]
    found.append(drawn.mutate(found[2], chance))
    assert all(core.is_subset(each) for each in found)


def test_paths_of_a_round_share_what_may_be_sent():
    paths = sample_paths(sampler(), 4, 0.3, 1, np.random.default_rng(0))
    together = {}
    for path in paths:
        together.update(weight_sizes(SPACE, path, 1))
    assert 2 <= len(set(paths)) == len(paths) <= 4
    assert sum(together.values()) <= 0.3 * supernet_size(SPACE, 1)
    assert len(sample_paths(sampler(), 4, 0.001, 1, np.random.default_rng(0))) == 1
    drawn = sampler()
    assert drawn.sandwich(3, np.random.default_rng(0))[:2] == [drawn.largest, drawn.smallest]


# training


def job(**training):
    return Job.model_validate(
        {
            "data": {"spacing_mm": SPACING_MM, "patch_voxels": (16, 16, 16)},
            "network": {"channels": (4, 8)},
            "training": {"learning_rate": 0.01, "steps_per_round": 4, "batch_size": 1, "precision": "fp32"} | training,
        }
    )


def write_ct(folder, seed):
    image, label = make_ct(seed)
    return write_nifti(folder / f"{seed}_ct.nii.gz", image), write_nifti(folder / f"{seed}_label.nii.gz", label)


@pytest.fixture(scope="module")
def cases(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cases")
    made = [Case(str(seed), *write_ct(folder, seed)) for seed in range(2)]
    return prepare_cases(made, job().data, None)


@pytest.fixture
def trainer(cases):
    return SupernetTrainer(job(), SPACE, cases, CPU, "site-1")


PATHS = (random_architecture(SPACE, 1), random_architecture(SPACE, 2))


def test_paths_train_in_turn_and_nothing_else_changes(trainer):
    before = trainer.shared_values()
    done = trainer.train_paths(1, 5, 2, PATHS)
    after = trainer.shared_values()
    counted = Counter()
    for name in weight_names(SPACE, PATHS[0]):
        counted[name] += 3
    for name in weight_names(SPACE, PATHS[1]):
        counted[name] += 2
    assert dict(done.touched) == dict(counted)
    assert done.steps == 5
    assert done.loss > 0
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed <= set(done.touched)
    assert len(changed) > 0.9 * len(done.touched)


@pytest.mark.parametrize("optimizer", ["novograd", "adam", "sgd"])
def test_one_path_alone_is_trained_as_by_any_trainer(cases, optimizer):
    ours = SupernetTrainer(job(optimizer=optimizer), SPACE, cases, CPU, "site-1")
    network = DiscreteNetwork(SPACE, PATHS[0], 1)
    theirs = Trainer(job(optimizer=optimizer), cases, CPU, "site-1", network)
    theirs.load({name: ours.values[name] for name in weight_names(SPACE, PATHS[0])})
    for round_number in (1, 2):
        found, wanted = ours.train_paths(round_number, 2, 2, PATHS[:1]), theirs.train(round_number, 2, 2)
        assert found.loss == wanted.loss
        # other networks in between leave the optimiser's memory of this one alone
        ours.score_path(PATHS[1], cases[:1])
    values = theirs.all_values()
    assert all(torch.equal(ours.values[name], value) for name, value in values.items())
    assert ours.score_path(PATHS[0], cases[:1])[0].dice == theirs.score(cases[:1])[0].dice


def test_the_same_round_twice_gives_the_same_bits(cases):
    found = []
    for _ in range(2):
        trainer = SupernetTrainer(job(), SPACE, cases, CPU, "site-1")
        trainer.train_paths(1, 3, 1, PATHS)
        found.append(trainer.shared_values())
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


def test_loaded_values_are_what_is_trained_and_shared(trainer):
    values = {name: torch.full_like(value, 0.01) for name, value in trainer.shared_values().items()}
    trainer.train_paths(1, 1, 1, PATHS[:1])
    trainer.load(values)
    assert all(torch.equal(trainer.shared_values()[name], value) for name, value in values.items())
    assert all(float(value.flatten()[0]) == pytest.approx(0.01) for value in trainer.network.state_dict().values())


def test_fedprox_pulls_each_path_to_what_was_received(cases):
    moved = []
    for mu in (0.0, 100.0):
        settings = job(optimizer="sgd", gradient_clip=0.0, learning_rate=0.001).model_dump()
        settings["federation"] |= {"algorithm": "fedprox" if mu else "fedavg", "proximal_mu": mu or 0.1}
        trainer = SupernetTrainer(Job.model_validate(settings), SPACE, cases, CPU, "site-1")
        start = trainer.shared_values()
        done = trainer.train_paths(1, 6, 1, PATHS)
        end = trainer.shared_values()
        moved.append(sum(float((end[name] - start[name]).square().sum()) for name in done.touched))
    assert moved[1] < moved[0]


def test_validation_patches_are_the_same_at_each_call_and_loss_falls_with_training(trainer, cases):
    first, second = trainer.validation_patches(cases, 2), trainer.validation_patches(cases, 2)
    assert all(torch.equal(a, b) for one, two in zip(first, second, strict=True) for a, b in zip(one, two, strict=True))
    before = trainer.patch_loss(PATHS[0], first)
    trainer.train_paths(1, 12, 1, PATHS[:1])
    assert trainer.patch_loss(PATHS[0], first) < before


def test_training_without_cases_is_an_error():
    with pytest.raises(DataError, match="no training cases"):
        SupernetTrainer(job(), SPACE, [], CPU, "site-1").train_paths(1, 1, 1, PATHS)
