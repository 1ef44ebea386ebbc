"""Training in less memory: computing activations again, smaller patches, and a federation of sites that need them."""

import copy
import math

import pytest
import torch
from monai.networks.nets.unet import UNet

from fl_app.config import Job
from fl_app.config.space import DINTS_OPERATIONS
from fl_app.config_file import load_job, parse_job
from fl_app.data.sampling import PatchSampler
from fl_app.data.site_data import load_site_data
from fl_app.errors import ConfigError, FederationError
from fl_app.model_file import load_model
from fl_app.networks.registry import build_network
from fl_app.networks.space.supernet import DiscreteNetwork
from fl_app.prediction.predictor import Predictor
from fl_app.rehearsal import rehearsal_channel, rehearse
from fl_app.training.adapting import adapt_layers
from fl_app.training.cost import prediction_memory
from fl_app.training.cost import training_memory as memory_parts
from fl_app.training.dice_ce import DiceCrossEntropy
from fl_app.training.fitting import fit_training, training_memory, with_training
from fl_app.training.freezing import freeze, frozen_names, lower_frozen
from fl_app.training.precision import MixedPrecision
from fl_app.training.randomness import start_stream
from fl_app.training.recompute import recompute
from fl_app.training.trainer import Trainer, ready_network
from tests.architectures import random_architecture, space
from tests.federation import write_job, write_sites
from tests.test_search_federation import Wire, settings

torch.set_num_threads(1)
CPU = torch.device("cpu")
PATCH = (32, 32, 32)
NETWORKS = [
    {"name": "unet", "channels": (4, 8, 16)},
    {"name": "unet", "channels": (4, 8, 16), "dropout": 0.3, "residual_units": 0},
    {"name": "segresnet", "channels": (8, 16, 32, 64)},
    {"name": "dynunet", "size": "small"},
    {"name": "unetr", "size": "small"},
    {"name": "dints", "size": "small"},
]


def job(network, **training):
    data = {"patch_voxels": PATCH, "spacing_mm": (1.5, 1.5, 1.5)}
    return Job.model_validate({"data": data, "network": network, "training": {"batch_size": 1} | training})


def built(network):
    """A network of MONAI's by its settings, or one of the space of cells."""
    if network != "cells":
        return build_network(job(network))
    chosen = space(operations=DINTS_OPERATIONS)
    return DiscreteNetwork(chosen, random_architecture(chosen, 1), 1)


def network_id(network):
    return network if isinstance(network, str) else "-".join(map(str, network.values()))


def gradients(network, precision):
    torch.manual_seed(0)
    images, labels = torch.rand(2, 1, *PATCH), torch.randint(0, 2, (2, 1, *PATCH), dtype=torch.uint8)
    with MixedPrecision(precision, CPU).autocast():
        logits = network(images)
    DiceCrossEntropy()(logits, labels).backward()
    return {name: each.grad for name, each in network.named_parameters()}


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("network", [*NETWORKS, "cells"], ids=network_id)
def test_computing_again_gives_the_same_gradients_in_less_memory(network, precision):
    plain = adapt_layers(built(network)).train()
    thrifty = recompute(copy.deepcopy(plain))
    assert thrifty.state_dict().keys() == plain.state_dict().keys()
    wanted, found = gradients(plain, precision), gradients(thrifty, precision)
    # to the bit, but for the U-Net, whose sums are taken in another order
    near = {"fp32": 1e-4, "bf16": 0.05}[precision] if isinstance(plain, UNet) else 0.0
    largest = max(each.norm() for each in wanted.values() if each is not None)
    for name, each in wanted.items():
        assert each is found[name] is None or (each - found[name]).norm() <= near * largest, name
    parts = [memory_parts(each, PATCH, 1, CPU, precision) for each in (plain, thrifty)]
    assert parts[1].activations < 0.7 * parts[0].activations and parts[1].peak <= parts[0].peak


def test_a_network_that_computes_again_predicts_as_before():
    plain = build_network(job(NETWORKS[0])).eval()
    image = torch.rand(1, 1, *PATCH)
    with torch.no_grad():
        assert torch.equal(plain(image), recompute(copy.deepcopy(plain))(image))


@pytest.mark.parametrize("network", NETWORKS[:2], ids=network_id)
def test_the_quickest_way_that_fits_is_taken(network):
    asked = job(network, precision="fp32")
    plain = training_memory(ready_network(asked, CPU), asked, CPU)
    fit = fit_training(asked, CPU, plain)
    assert fit.fits and fit.job == asked and fit.memory_bytes == plain
    least = fit_training(asked, CPU, 0)
    assert not least.fits and least.saving.recompute and 0 < least.memory_bytes < plain
    again = fit_training(asked, CPU, least.memory_bytes)
    assert again.fits and again.saving.model_copy(update={"window_voxels": None}) == least.saving
    thrifty = fit_training(asked, CPU, plain - 1)
    assert thrifty.fits and thrifty.saving.recompute and least.memory_bytes <= thrifty.memory_bytes < plain


@pytest.mark.parametrize("settings", [{"federation": {"algorithm": "fedprox"}}, {"personal": {"ditto": 0.1}}])
@pytest.mark.parametrize("early", [False, True])
def test_what_weights_are_pulled_to_takes_memory_too(settings, early):
    plain = job({"name": "unet", "channels": (16, 64)}, precision="fp32", early_update=early)
    pulling = Job.model_validate(plain.model_dump() | settings)
    network = ready_network(plain, CPU)
    weights = sum(each.numel() * 4 for each in network.parameters())
    more = training_memory(network, pulling, CPU) - training_memory(network, plain, CPU)
    # those, each one's distance while the loss is computed, and the square of one at a time
    assert 1.5 * weights <= more <= 3 * weights


def predicting(fit):
    at_once = fit.job.evaluation.windows_at_once
    return prediction_memory(fit.network, fit.job.window, 1, CPU, "fp32", keep_weights=at_once > 1)


def test_windows_in_prediction_are_as_large_as_the_budget_holds():
    asked = job({"name": "unet", "channels": (8, 16)}, precision="fp32")
    plain, least = fit_training(asked, CPU, 2**30), fit_training(asked, CPU, 0)
    assert plain.job.window == PATCH and predicting(plain) > least.memory_bytes
    windows = []
    enough = predicting(plain) * 11 // 10  # a network that computes again predicts small windows in a little more
    for budget in sorted({least.memory_bytes, (least.memory_bytes + enough) // 2, enough}):
        fit = fit_training(asked, CPU, budget)
        assert fit.fits and fit.memory_bytes <= budget and predicting(fit) <= budget
        windows.append(fit.job.window)
    voxels = [math.prod(window) for window in windows]
    assert voxels == sorted(voxels) and voxels[0] < voxels[-1] == math.prod(PATCH)
    words = fit_training(asked, CPU, least.memory_bytes).words
    assert f"windows of {windows[0][0]} x " in words and words.endswith(" voxels in prediction")


def test_patches_are_no_smaller_than_the_job_allows():
    asked = job({"name": "unet", "channels": (4, 8)}, least_patch_share=0.65)
    least = fit_training(asked, CPU, 0)
    assert least.saving.patch_share == 0.65 and least.job.training_patch == (20, 20, 20)
    assert (asked.training.foreground_share, least.job.training.foreground_share) == (0.5, 0.75)
    assert (
        fit_training(job({"name": "unet", "channels": (4, 8)}, least_patch_share=1.0), CPU, 0).saving.patch_share == 1
    )


def test_as_much_is_left_to_others_as_the_job_allows():
    network = {"name": "unet", "channels": (4, 8, 16)}
    least = fit_training(job(network), CPU, 0)
    trained = [each.numel() for each in least.network.parameters() if each.requires_grad]
    whole = sum(each.numel() for each in least.network.parameters())
    assert least.saving.frozen_share == 0.9 and 0.1 * whole <= sum(trained) < 0.3 * whole
    assert fit_training(job(network, most_frozen_share=0.5), CPU, 0).saving.frozen_share == 0.5
    assert fit_training(job(network, most_frozen_share=0.0), CPU, 0).saving.frozen_share == 0.0


def test_several_processes_hold_their_gradients():
    asked = job({"name": "unet", "channels": (8, 16)}, precision="fp32", batch_size=3, early_update=True)
    alone, three = (fit_training(asked, CPU, 0, processes=count) for count in (1, 3))
    assert alone.saving.early_update and not three.saving.early_update
    plain = with_training(asked, early_update=False)
    one = with_training(plain, batch_size=1)
    network = ready_network(plain, CPU)
    weights = sum(each.numel() * 4 for each in network.parameters())
    assert training_memory(network, plain, CPU, 3) == training_memory(network, one, CPU) + weights


def test_updates_that_are_compared_as_a_whole_hold_all_weights():
    described = job({"name": "unet", "channels": (4, 8)}).model_dump() | {"federation": {"aggregator": "multi_krum"}}
    least = fit_training(Job.model_validate(described), CPU, 0)
    assert least.saving.recompute and not least.saving.frozen_share


@pytest.mark.parametrize("share", [0.3, 0.5, 0.8])
def test_the_largest_weights_are_frozen_as_far_as_the_share_goes(share):
    network = freeze(build_network(job({"name": "unet", "channels": (4, 8, 16)})), share)
    sizes = {name: each.numel() for name, each in network.named_parameters()}
    frozen, left = frozen_names(network), share * sum(sizes.values())
    taken = sum(sizes[name] for name in frozen)
    assert 0.8 * left < taken <= left and all(each.requires_grad for each in network.parameters() if each.dim() == 1)
    assert max(sizes, key=sizes.get) in frozen or max(sizes.values()) > left


@pytest.mark.parametrize("network", NETWORKS[:4], ids=lambda network: "-".join(map(str, network.values())))
def test_frozen_weights_in_the_type_that_is_computed_in_give_the_same_in_less_memory(network):
    """Also where maps are smaller than a kernel, which are computed in fp32."""
    plain = freeze(adapt_layers(build_network(job(network))).train(), 0.8)
    lowered = copy.deepcopy(plain)
    lower_frozen(lowered, torch.bfloat16)
    wanted, found = gradients(plain, "bf16"), gradients(lowered, "bf16")
    for name, each in wanted.items():
        assert each is found[name] is None or torch.allclose(each, found[name], rtol=0.02, atol=1e-3), name
    sizes = [sum(each.nbytes for each in network.parameters()) for network in (plain, lowered)]
    assert sizes[1] < 0.7 * sizes[0]


def test_what_a_site_has_frozen_leaves_it_in_fp32(data, asked):
    training = asked.training.model_copy(update={"frozen_share": 0.5, "precision": "bf16"})
    thrifty = asked.model_copy(update={"training": training})
    trainer = Trainer(
        thrifty, load_site_data(data / "site-1", thrifty.data, thrifty.seed, None).training, CPU, "site-1"
    )
    before = trainer.all_values()
    trainer.train(1, 1, 1)
    after, frozen = trainer.all_values(), frozen_names(trainer.network)
    assert {value.dtype for value in after.values()} == {torch.float32}
    assert trainer.holds({name: before[name] for name in frozen})
    for name in frozen:
        torch.testing.assert_close(after[name], before[name], rtol=0.004, atol=0)


def test_batch_normalisation_counts_each_batch_once():
    least = fit_training(job({"name": "unet", "channels": (4, 8), "normalisation": "batch"}), CPU, 0)
    assert not least.saving.recompute and least.saving.patch_share == 0.75


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("network: {channels: [4, 8], normalisation: batch}\ntraining: {recompute: true}", "count each batch twice"),
        ("network: {name: vnet}\ntraining: {recompute: true}", "count each batch twice"),
        ("network: {name: unetr}\ntraining: {patch_share: 0.5}", "patch_share nearer to 1"),
        ("data: {patch_voxels: [16, 16, 32]}\ntraining: {patch_share: 0.5}", "patch_share nearer to 1"),
        ("network: {name: unetr}\nevaluation: {window_voxels: [64, 64, 64]}", "window_voxels of at most"),
        ("evaluation: {window_voxels: [96, 96, 100]}", "window_voxels of at most"),
        ("evaluation: {window_voxels: [96, 96, 112]}", "window_voxels of at most"),
        ("training: {patch_share: 0.1}", "patch_share"),
        ("training: {patch_share: 1.5}", "patch_share"),
        ("training: {least_patch_share: 0}", "least_patch_share"),
    ],
)
def test_what_cannot_be_trained_is_a_mistake_of_the_job(text, reason):
    with pytest.raises(ConfigError, match=reason):
        parse_job(text, "job.yaml")


def test_frozen_weights_stay_as_they_are_and_are_no_part_of_what_is_trained(data, asked):
    training = asked.training.model_copy(update={"frozen_share": 0.5, "optimizer": "adam", "weight_decay": 0.1})
    thrifty = asked.model_copy(update={"training": training})
    held = load_site_data(data / "site-1", thrifty.data, thrifty.seed, None)
    trainer = Trainer(thrifty, held.training, CPU, "site-1")
    before = trainer.all_values()
    trainer.train(1, 3, 1)
    changed = {name for name, value in trainer.all_values().items() if not torch.equal(value, before[name])}
    assert changed and changed == trainer.trained_names() == set(trainer.exchanged) - frozen_names(trainer.network)


def test_accumulated_batches_take_the_step_of_their_mean_gradient(data, asked):
    settings = {"accumulate": 3, "optimizer": "sgd", "learning_rate": 0.01, "schedule": "constant", "gradient_clip": 0}
    job = asked.model_copy(update={"training": asked.training.model_copy(update=settings)})
    held = load_site_data(data / "site-1", job.data, job.seed, None)
    trainer = Trainer(job, held.training, CPU, "site-1")
    network = copy.deepcopy(trainer.network)
    done = trainer.train(1, 1, 1)
    sampler = PatchSampler(held.training, job.training_patch, job.training.foreground_share, job.training.augmentation)
    chance = start_stream(job.seed, "site-1", 1)
    batches = [sampler.draw(job.training.batch_size, chance) for _ in range(3)]
    mean = sum(DiceCrossEntropy()(network(images), labels) for images, labels in batches) / 3
    mean.backward()
    assert done.loss == pytest.approx(mean.item(), abs=1e-6) and done.steps == 1
    for before, after in zip(network.parameters(), trainer.network.parameters(), strict=True):
        # Nesterov's momentum of 0.99 has nothing to remember in the first step
        torch.testing.assert_close(before - after, 0.01 * 1.99 * before.grad, atol=1e-6, rtol=1e-3)


def trained(asked, data, steps, **training):
    """A trainer after some steps."""
    update = {"learning_rate": 0.01, **training}
    job = asked.model_copy(update={"training": asked.training.model_copy(update=update)})
    held = load_site_data(data / "site-1", job.data, job.seed, None)
    trainer = Trainer(job, held.training, CPU, "site-1")
    trainer.train(1, steps, 1)
    return trainer


@pytest.mark.parametrize("optimizer", ["novograd", "adam", "adamw", "sgd"])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_weights_updated_one_by_one_take_the_same_step(data, asked, optimizer, accumulate):
    """Up to rounding, as long as no momentum is remembered; then up to its rounding to fewer bits."""
    changes = {"optimizer": optimizer, "gradient_clip": 0, "accumulate": accumulate}
    plain, early = (trained(asked, data, 1, early_update=each, **changes) for each in (False, True))
    start = early.all_values()
    for name, value in plain.all_values().items():
        torch.testing.assert_close(start[name], value, atol=1e-6, rtol=1e-5)
    plain, early = (trained(asked, data, 4, early_update=each, **changes) for each in (False, True))
    assert all(each.grad is None for each in early.network.parameters())
    # instance normalisation takes a bias before it away: its gradient is rounding, which the optimisers scale up
    for name, value in plain.all_values().items():
        if not name.endswith("conv.bias"):
            torch.testing.assert_close(early.all_values()[name], value, atol=0.01, rtol=0.01)
    assert not early.holds(start)


def test_the_momentum_of_weights_updated_one_by_one_survives_a_restart(data, asked):
    early = trained(asked, data, 2, optimizer="novograd", early_update=True)
    state = copy.deepcopy(early.optimizer_state())
    momenta = [each["exp_avg"] for each in state["state"].values()]
    assert momenta and all(each.dtype == torch.int8 for each in momenta)
    other = Trainer(early.job, early.cases, CPU, "site-1")
    other.load(early.all_values())
    other.restore_optimizer(state)
    for each in (early, other):
        each.train(2, 2, 2)
    assert other.holds(early.all_values())


def test_a_network_that_rests_keeps_no_gradients_and_goes_on_as_it_was(data, asked):
    cases = load_site_data(data / "site-1", asked.data, asked.seed, None).training
    one, other = (Trainer(asked, cases, CPU, "site-1") for _ in range(2))
    for each in (one, other):
        each.train(1, 2, 2)
    assert any(each.grad is not None for each in one.network.parameters())
    one.rest()
    assert all(each.grad is None for each in one.network.parameters())
    one.wake()
    for each in (one, other):
        each.train(2, 2, 2)
    assert one.holds(other.all_values())


def test_the_gradient_of_each_weight_is_clipped_if_they_are_updated_one_by_one():
    network = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 1))
    before = copy.deepcopy(network)
    optimizer = torch.optim.SGD(network.parameters(), lr=1.0)
    loss = 1000 * network(torch.ones(1, 4)).sum()
    MixedPrecision("fp32", CPU).step(loss, network, optimizer, 0.5, early=True)
    for old, new in zip(before.parameters(), network.parameters(), strict=True):
        assert float((new - old).norm()) == pytest.approx(0.5, rel=1e-3)


def test_weights_updated_one_by_one_take_less_memory():
    network = {"name": "unet", "channels": (16, 32, 64)}
    again = job(network, recompute=True)
    early = job(network, recompute=True, early_update=True)
    memory = [training_memory(ready_network(each, CPU), each, CPU) for each in (again, early)]
    assert memory[1] < 0.95 * memory[0]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_sites(tmp_path_factory.mktemp("data"), site_1=4, site_2=4, site_3=4)


@pytest.fixture(scope="module")
def asked(tmp_path_factory):
    path = tmp_path_factory.mktemp("job") / "job.yaml"
    return load_job(
        write_job(
            path,
            data={"patch_voxels": [32, 32, 16]},
            network={"channels": [8, 16, 32]},
            training={"steps_per_round": 2, "precision": "fp32"},
            federation={"rounds": 2},
            personal={"fine_tuning_steps": 2, "fine_tuning_shares": [1.0]},
        )
    )


def test_a_site_with_little_memory_takes_part_with_the_whole_network(data, asked, tmp_path):
    """Its share is what it would be with more memory: it computes again, on the same patches."""
    plain = training_memory(ready_network(asked, CPU), asked, CPU) / 2**20
    results, weights = [], []
    for name, share in (("much", 2.0), ("little", 0.99)):
        folder = tmp_path / name
        sites = settings(data, folder, {"site-1": share * plain, "site-2": 2 * plain})
        wire = Wire(rehearsal_channel(asked, sites))
        results.append(rehearse(asked, sites, folder / "out", wire))
        weights.append(load_model(folder / "out" / "model" / "last.safetensors")[0])
    much, little = results
    assert little.sites["site-1"].saving.recompute and not much.sites["site-1"].saving.recompute
    assert not little.sites["site-2"].saving.recompute
    # instance normalisation takes a bias before it away: its gradient is rounding, which Novograd scales up
    for name, weight in weights[0].items():
        if not name.endswith("conv.bias"):
            near = 5e-3 * float(weight.abs().max())
            torch.testing.assert_close(weights[1][name], weight, rtol=0, atol=near, msg=name)
    assert [each.dice for each in little.rounds] == pytest.approx([each.dice for each in much.rounds], abs=1e-3)
    kept = little.personal.sites["site-1"].models
    assert all(0 < model.memory_bytes <= 0.99 * plain * 2**20 for model in kept.values())


def test_a_site_with_less_memory_trains_on_smaller_patches(data, asked, tmp_path):
    whole = asked.training.model_copy(update={"most_frozen_share": 0.0})
    job = asked.model_copy(update={"training": whole})
    budget = 1.01 * fit_training(job, CPU, 0).memory_bytes / 2**20
    result = rehearse(job, settings(data, tmp_path, {"site-1": budget, "site-2": 100.0}), tmp_path / "out")
    assert result.status == "finished" and len(result.rounds) == 2
    assert result.sites["site-1"].saving.patch_share < 1 == result.sites["site-2"].saving.patch_share
    for site in result.sites:
        predictor = Predictor(tmp_path / site / "model.safetensors", CPU)
        assert predictor.job.evaluation.window_voxels == result.sites[site].saving.window_voxels


@pytest.mark.parametrize("bits", [32, 8])
def test_what_a_site_leaves_to_others_is_averaged_over_those_that_train_it(data, asked, tmp_path, bits):
    """Sites 1 and 2 train all; site 3 has the whole model, and sends what it has trained."""
    federation = asked.federation.model_copy(update={"transfer_bits": bits})
    job = asked.model_copy(update={"federation": federation})
    least = fit_training(job, CPU, 0)
    little = frozen_names(least.network)
    budgets = {"site-1": 100.0, "site-2": 100.0, "site-3": 1.01 * least.memory_bytes / 2**20}
    sites = settings(data, tmp_path, budgets)
    wire = Wire(rehearsal_channel(job, sites))
    result = rehearse(job, sites, tmp_path / "out", wire)
    assert result.sites["site-3"].saving.frozen_share == 0.9
    for task, site, _, down, up, report in wire.sent:
        if task == "train":
            left = little if site == "site-3" else set()
            assert up == set(build_network(job).state_dict()) - left and (report["touched"] is None) == (not left)
            assert bits < 32 or down >= up | left
    last, _ = load_model(tmp_path / "out" / "model" / "last.safetensors")
    start = build_network(job).state_dict()
    assert all(not torch.equal(last[name], start[name]) for name in little), "the others have trained it"


def test_what_a_single_site_trains_changes_nothing_for_all_to_see(data, asked, tmp_path, caplog):
    """Two of three sites leave the same weights to the third: their mean would be its own update."""
    least = fit_training(asked, CPU, 0)
    little = 1.01 * least.memory_bytes / 2**20
    sites = settings(data, tmp_path, {"site-1": 100.0, "site-2": little, "site-3": little})
    result = rehearse(asked, sites, tmp_path / "out")
    last, _ = load_model(tmp_path / "out" / "model" / "last.safetensors")
    start = build_network(asked).state_dict()
    same = {name for name in last if torch.equal(last[name], start[name])}
    assert result.status == "finished" and same == frozen_names(least.network)
    assert caplog.text.count("of the values stay as they are, since fewer than 2 sites train them") == 1


def test_a_budget_that_holds_no_training_step_names_what_it_would_take(data, asked, tmp_path, caplog):
    with pytest.raises(FederationError, match="does not fit the site's device"):
        rehearse(asked, settings(data, tmp_path, {"site-1": 0.05, "site-2": 100.0}), tmp_path / "out")
    assert "memory_budget_gib: training the job's network takes" in caplog.text and "at least" in caplog.text
