"""The memory model against what training really takes."""

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from torch import nn

from fl_app.config import Job
from fl_app.errors import BudgetError
from fl_app.networks.space.decoding import least_network
from fl_app.networks.space.supernet import DiscreteNetwork
from fl_app.search.memory import calibrate, measured_memory, memory_model
from fl_app.training.cost import training_memory as memory_parts
from fl_app.training.fitting import training_memory
from fl_app.training.precision import choose_precision
from tests.architectures import random_architecture, space

torch.set_num_threads(1)
CPU = torch.device("cpu")


def job(organs=1, patch=(32, 32, 32), **training):
    return Job.model_validate(
        {
            "data": {"labels": {f"organ_{n}": n + 1 for n in range(organs)}, "patch_voxels": patch},
            "network": {"channels": (4, 8)},
            "training": {"batch_size": 1, "precision": "fp32"} | training,
        }
    )


@pytest.mark.parametrize("settings", [{}, {"precision": "bf16"}, {"optimizer": "adam", "batch_size": 2}, {"organs": 3}])
@pytest.mark.parametrize("stem", [True, False])
def test_the_calculation_alone_knows_what_a_network_takes_more_than_another(settings, stem):
    chosen, patch = (
        space(downsampling_stem=stem, operations=("skip", "conv_3x3x3", "pseudo_3x3x1", "conv_1x3x3")),
        job(**settings),
    )
    calculated = memory_model(patch, chosen, CPU)
    networks = [DiscreteNetwork(chosen, random_architecture(chosen, seed), len(patch.data.labels)) for seed in range(2)]
    wanted = [calculated.total(each.architecture) for each in networks]
    training = patch.training
    precision = choose_precision(training.precision, CPU)
    # at the peak there is more, much the same in all networks, which probes measure
    kept = [
        memory_parts(each, patch.training_patch, training.batch_size, CPU, precision, training).total
        for each in networks
    ]
    assert wanted[0] - wanted[1] == pytest.approx(kept[0] - kept[1], rel=0.02)
    assert min(wanted) > min(kept)


@pytest.mark.parametrize(
    ("saving", "algorithm", "error"),
    [
        ({}, "fedavg", 0.1),
        ({"recompute": True}, "fedavg", 0.15),
        ({"recompute": True, "early_update": True}, "fedavg", 0.1),
        ({}, "fedprox", 0.1),
        ({"recompute": True, "early_update": True}, "fedprox", 0.1),
    ],
)
def test_a_calibrated_model_is_right_about_networks_it_has_not_seen(saving, algorithm, error):
    chosen, plain = space(), job(patch=(16, 16, 32), **saving)
    small = Job.model_validate(plain.model_dump() | {"federation": {"algorithm": algorithm}})
    memory = calibrate(small, chosen, CPU)
    networks = [random_architecture(chosen, seed) for seed in range(8)]
    predicted = np.array([memory.total(each) for each in networks])
    found = np.array([measured_memory(DiscreteNetwork(chosen, each, 1), small, CPU) for each in networks])
    assert np.abs(predicted / found - 1).max() < error
    assert spearmanr(predicted, found).statistic > 0.97


def test_what_is_measured_is_what_a_linear_network_must_hold():
    # a convolution of one tap keeps its input; sgd holds weights, gradients and momentum
    network = nn.Conv3d(1, 2, 1)
    voxels, weights = 16**3, 2 + 2
    found = training_memory(network, job(patch=(16, 16, 16), optimizer="sgd", loss="dice"), CPU)
    bare = training_memory(nn.Conv3d(1, 2, 1, bias=False), job(patch=(16, 16, 16), optimizer="sgd", loss="dice"), CPU)
    # the bias and its momentum; the peak is in the loss, when there are no gradients yet
    assert found - bare == 2 * 2 * 4
    assert found > 4 * voxels + 3 * 4 * weights


def test_probes_stay_in_the_budget_or_say_why_not():
    chosen, small = space(blocks=2), job(patch=(16, 16, 32))
    least = memory_model(small, chosen, CPU)
    floor = least.total(least_network(least))
    memory = calibrate(small, chosen, CPU, budget=1.05 * floor)
    assert memory.scale > 0
    smallest = least_network(memory)
    taken = training_memory(DiscreteNetwork(chosen, smallest, 1), small, CPU)
    assert taken <= memory.total(smallest) <= 1.1 * taken
    with pytest.raises(BudgetError, match="least"):
        calibrate(small, chosen, CPU, budget=0.9 * floor)
