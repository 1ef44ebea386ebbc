"""What is done otherwise on a GPU comes to the same as on a CPU, or as torch's and MONAI's own. Needs a GPU."""

import copy

import pytest
import torch
from monai.losses.dice import DiceCELoss
from monai.optimizers.novograd import Novograd

from fl_app.config import Job
from fl_app.data.site_data import SiteData
from fl_app.networks.registry import build_network
from fl_app.training.adapting import adapt_layers
from fl_app.training.cost import training_memory
from fl_app.training.dice_ce import DiceCrossEntropy
from fl_app.training.evaluation import predict
from fl_app.training.fitting import fit_training
from fl_app.training.novograd import ForeachNovograd
from fl_app.training.precision import MixedPrecision
from fl_app.training.replaying import may_replay
from fl_app.training.trainer import Trainer, ready_network
from fl_app.training.trial import Way, quickest_way, usual_way
from tests.test_training import block_case, draw

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no CUDA GPU")
GPU, CPU = torch.device("cuda"), torch.device("cpu")


def job(network=None, rounds=2, **training):
    return Job.model_validate(
        {
            "data": {"patch_voxels": [32, 32, 32]},
            "network": network or {"name": "unet", "channels": [8, 16, 32]},
            "training": {"batch_size": 2, "steps_per_round": 5, **training},
            "federation": {"rounds": rounds},
        }
    )


def far(found, wanted):
    return float((found - wanted).norm() / wanted.norm())


def cases(count=2):
    return [block_case() for _ in range(count)]


def trained(wanted, way, steps=5, device=GPU, held=None):
    network = ready_network(wanted, device)
    trainer = Trainer(wanted, held or cases(), device, "site-1", network, way)
    for number in (1, 2):
        trainer.train(number, steps, 2)
    return trainer


NETWORKS = [
    {"name": "unet", "channels": [8, 16, 32]},
    {"name": "unet", "channels": [8, 16, 32], "normalisation": "batch"},
    {"name": "segresnet", "channels": [8, 16, 32, 64]},
    {"name": "dynunet", "size": "tiny"},
]


@pytest.mark.parametrize("network", NETWORKS, ids=str)
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_replayed_steps_are_those_that_are_computed_kernel_by_kernel(network, precision):
    wanted = job(network, precision=precision)
    assert may_replay(wanted, GPU)
    plain, replayed = (trained(wanted, Way(precision, False, each)) for each in (False, True))
    assert "forward" in vars(replayed.network) and "forward" not in vars(plain.network)
    start = build_network(wanted).state_dict()
    one, other = (each.all_values() for each in (plain, replayed))
    # of biases before a normalisation the gradients are rounding, which NovoGrad scales up
    names = [name for name in one if name.endswith("conv.weight") or name.endswith("conv1.weight")]
    off = {name: far(other[name] - start[name], one[name] - start[name]) for name in names}
    assert off and max(off.values()) < 0.2, off
    assert all(torch.isfinite(each).all() for each in other.values())


def test_batch_statistics_are_those_of_the_training_patches_alone():
    wanted = job({"name": "unet", "channels": [8, 16, 32], "normalisation": "batch"}, precision="fp32")
    counted = [trained(wanted, Way("fp32", False, each)).all_values() for each in (False, True)]
    names = [name for name in counted[0] if name.endswith("num_batches_tracked")]
    assert names and all(counted[0][name] == counted[1][name] == 10 for name in names)
    means = [name for name in counted[0] if name.endswith("running_mean")]
    assert all(far(counted[1][name], counted[0][name]) < 0.1 for name in means)


def test_a_network_that_rested_trains_on_with_its_graphs_recorded_anew():
    wanted = job(precision="fp32")
    one, other = (Trainer(wanted, cases(), GPU, "site-1", ready_network(wanted, GPU), way) for way in
                  (Way("fp32", False, True), Way("fp32", False)))  # fmt: skip
    for each in (one, other):
        each.train(1, 3, 2)
    state = copy.deepcopy(one.optimizer_state())
    one.rest()
    assert "forward" not in vars(one.network) and not next(one.network.parameters()).is_cuda
    one.restore_optimizer(state)  # as a site does that was started anew
    one.wake()
    for each in (one, other):
        each.train(2, 3, 2)
    assert "forward" in vars(one.network)
    assert one.wake() is None and "forward" in vars(one.network), "nothing has moved"
    found, expected = (each.all_values() for each in (one, other))
    for name, value in expected.items():
        if name.endswith("conv.weight"):
            assert far(found[name], value) < 0.02, name


def test_a_site_takes_the_replayed_way_and_computes_with_its_weights():
    wanted = job(rounds=500)
    way, tried = quickest_way(wanted, ready_network(wanted, GPU), GPU, None)
    assert way.replayed and {"bf16", "fp16", "fp32"} == {name.split(",")[0] for name in tried}
    budgeted, _ = quickest_way(wanted, ready_network(wanted, GPU), GPU, None, budgeted=True)
    exact, _ = quickest_way(job(deterministic=True), ready_network(wanted, GPU), GPU, None)
    assert not budgeted.replayed and not exact.replayed
    trainer = trained(wanted, way)
    other = Trainer(wanted, cases(), GPU, "site-1", ready_network(wanted, GPU), usual_way(wanted, GPU))
    other.load(trainer.all_values())
    found, expected = (each.score(cases())[0].dice["spleen"] for each in (trainer, other))
    assert found == pytest.approx(expected, abs=1e-3)


def test_the_optimiser_for_gpus_moves_weights_as_monais():
    torch.manual_seed(0)
    start = torch.nn.Conv3d(7, 9, 3).to(GPU)
    networks = [copy.deepcopy(start) for _ in range(2)]
    kinds = (Novograd, ForeachNovograd)
    optimizers = [kind(net.parameters(), lr=0.01, weight_decay=0.1) for kind, net in zip(kinds, networks, strict=True)]
    for _ in range(5):
        upstream = [torch.randn_like(each) for each in start.parameters()]
        for network, optimizer in zip(networks, optimizers, strict=True):
            for weight, gradient in zip(network.parameters(), upstream, strict=True):
                weight.grad = gradient.clone()
            optimizer.step()
    for one, other in zip(*(each.parameters() for each in networks), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last_3d], ids=str)
@pytest.mark.parametrize(
    "layer",
    [
        torch.nn.Conv3d(1, 16, 3, 2, 1),
        torch.nn.ConvTranspose3d(32, 2, 3, 2, 1, 1),
        torch.nn.InstanceNorm3d(2, affine=True),
        torch.nn.InstanceNorm3d(16),
    ],
    ids=str,
)
def test_layers_and_their_gradients_are_torchs(layer, layout):
    torch.manual_seed(0)
    images = torch.randn(2, getattr(layer, "in_channels", 0) or layer.num_features, 64, 56, 48, device=GPU) + 0.5
    found = []
    for mixed in (False, True):
        own = copy.deepcopy(layer).to(GPU)
        own = adapt_layers(torch.nn.Sequential(own))[0].to(memory_format=layout) if mixed else own
        given = images.clone().to(memory_format=layout).requires_grad_()
        with torch.autocast("cuda", torch.bfloat16, enabled=mixed):
            result = own(given.bfloat16() if mixed else given)
        upstream = torch.randn(result.shape, generator=torch.Generator().manual_seed(1)).to(GPU)
        (result * upstream).sum().backward()
        assert result.dtype == (torch.bfloat16 if mixed else torch.float32)
        found.append([result, given.grad, *(each.grad for each in own.parameters())])
    for exact, close in zip(*found, strict=True):
        assert far(close.float(), exact) < 0.02


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
def test_the_loss_is_monais(kind):
    torch.manual_seed(0)
    logits = torch.randn(8, 2, 64, 96, 96, device=GPU, dtype=kind)  # several slabs
    labels = torch.randint(0, 2, (8, 1, 64, 96, 96), device=GPU)
    monai = DiceCELoss(include_background=False, to_onehot_y=True, softmax=True, batch=True)
    found = []
    for loss in (monai, DiceCrossEntropy()):
        own = logits.clone().requires_grad_()
        value = loss(own.float() if loss is monai else own, labels)
        value.backward()
        found.append((value, own.grad.float()))
    torch.testing.assert_close(found[1][0], found[0][0], rtol=1e-4, atol=1e-4)
    assert far(found[1][1], found[0][1]) < (1e-4 if kind == torch.float32 else 1e-2)


def test_patches_drawn_from_a_gpu_are_those_drawn_from_the_machines_memory():
    held = SiteData(cases(), cases(), cases(), [])
    there = held.near(GPU, 2**30)
    assert all(case.image.is_cuda and case.label.is_cuda for case in (*there.training, *there.validation))
    assert held.near(GPU, 1000) is held
    change = job(augmentation={"noise": 0.1, "flip_probability": [0.5, 0.5, 0.5]}).training.augmentation
    for one, other in zip(*(draw(each.training, (24, 24, 24), change=change) for each in (held, there)), strict=True):
        assert other.is_cuda
        torch.testing.assert_close(other.cpu(), one)
    wanted = job(precision="fp32")
    trainer = trained(wanted, Way("fp32", False), held=there.training)
    scores = [trainer.score(each.validation)[0].dice["spleen"] for each in (held, there)]
    assert scores[0] == pytest.approx(scores[1], abs=1e-3)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_predictions_are_a_cpus(precision):
    wanted = job(precision=precision)
    values = trained(wanted, Way(precision, False)).all_values()
    image = torch.rand(1, 60, 50, 40).half()
    found = []
    for device in (CPU, GPU):
        network = ready_network(wanted, device)
        network.load_state_dict(values)
        found.append(predict(network, image, wanted, MixedPrecision(precision, device)).cpu())
    assert float((found[0] - found[1]).abs().max()) < (0.01 if precision == "fp32" else 0.1)


@pytest.mark.parametrize("early", [False, True])
def test_computing_again_takes_less_memory_and_the_same_step(early):
    network = {"name": "unet", "channels": [16, 32, 64]}
    plain = job(network, precision="fp32", gradient_clip=0)
    saving = job(network, precision="fp32", gradient_clip=0, recompute=True, early_update=early)
    taken = [training_memory(ready_network(each, GPU), (96, 96, 96), 2, GPU, "bf16", each.training).peak
             for each in (plain, saving)]  # fmt: skip
    assert taken[1] < 0.75 * taken[0], taken
    start = ready_network(plain, GPU).state_dict()
    one, other = (Trainer(each, cases(), GPU, "site-1", ready_network(each, GPU), Way("fp32", False))
                  for each in (plain, saving))  # fmt: skip
    for each in (one, other):
        each.train(1, 1, 1)
    found, expected = (each.all_values() for each in (other, one))
    for name, value in expected.items():
        if name.endswith("conv.weight"):
            move = (value - start[name].cpu()).norm()
            assert float((found[name] - value).norm()) <= 0.05 * float(move), name


def test_a_budget_on_a_gpu_is_kept():
    wanted = job({"name": "unet"}).model_copy()
    full = fit_training(wanted, GPU, 2**40)
    fit = fit_training(wanted, GPU, 0.6 * full.memory_bytes)
    assert full.saving.words == "" and fit.fits and fit.saving.words
    before = torch.cuda.memory_allocated()
    trainer = Trainer(fit.job, cases(), GPU, "site-1", fit.network, usual_way(fit.job, GPU))
    trainer.train(1, 2, 1)
    torch.cuda.reset_peak_memory_stats()
    trainer.train(1, 3, 1)
    assert torch.cuda.max_memory_allocated() - before <= 1.05 * 0.6 * full.memory_bytes
