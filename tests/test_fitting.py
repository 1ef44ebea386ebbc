"""Training in less memory: computing activations again, smaller patches, and a federation of sites that need them."""

import copy

import pytest
import torch

from fl_app.config import Job
from fl_app.config_file import load_job, parse_job
from fl_app.errors import ConfigError, FederationError
from fl_app.networks import build_network
from fl_app.rehearsal import rehearsal_channel, rehearse
from fl_app.training.cost import training_memory as memory_parts
from fl_app.training.dice_ce import DiceCrossEntropy
from fl_app.training.fitting import fit_training, training_memory
from fl_app.training.precision import MixedPrecision, adapt_layers
from fl_app.training.recompute import recompute
from fl_app.training.trainer import ready_network
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


def gradients(network, precision):
    torch.manual_seed(0)
    images, labels = torch.rand(2, 1, *PATCH), torch.randint(0, 2, (2, 1, *PATCH), dtype=torch.uint8)
    with MixedPrecision(precision, CPU).autocast():
        logits = network(images)
    DiceCrossEntropy()(logits, labels).backward()
    return {name: each.grad for name, each in network.named_parameters()}


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("network", NETWORKS, ids=lambda network: "-".join(map(str, network.values())))
def test_computing_again_gives_the_same_gradients_to_the_bit_in_less_memory(network, precision):
    plain = adapt_layers(build_network(job(network))).train()
    thrifty = recompute(copy.deepcopy(plain))
    assert thrifty.state_dict().keys() == plain.state_dict().keys()
    wanted, found = gradients(plain, precision), gradients(thrifty, precision)
    for name, each in wanted.items():
        assert each is found[name] is None or torch.equal(each, found[name]), name
    parts = [memory_parts(each, PATCH, 1, CPU, precision) for each in (plain, thrifty)]
    assert parts[1].activations < 0.7 * parts[0].activations and parts[1].peak < parts[0].peak


def test_a_network_that_computes_again_predicts_as_before():
    plain = build_network(job(NETWORKS[0])).eval()
    image = torch.rand(1, 1, *PATCH)
    with torch.no_grad():
        assert torch.equal(plain(image), recompute(copy.deepcopy(plain))(image))


@pytest.mark.parametrize("network", NETWORKS[:2], ids=lambda network: "-".join(map(str, network.values())))
def test_the_quickest_way_that_fits_is_taken(network):
    asked = job(network, precision="fp32")
    plain = training_memory(ready_network(asked, CPU), asked, CPU)
    fit = fit_training(asked, CPU, plain)
    assert fit.fits and fit.job == asked and fit.memory_bytes == plain
    least = fit_training(asked, CPU, 0)
    assert not least.fits and least.saving.recompute and 0 < least.memory_bytes < plain
    again = fit_training(asked, CPU, least.memory_bytes)
    assert again.fits and again.saving == least.saving
    thrifty = fit_training(asked, CPU, plain - 1)
    assert thrifty.fits and thrifty.saving.recompute and least.memory_bytes <= thrifty.memory_bytes < plain


def test_patches_are_no_smaller_than_the_job_allows():
    asked = job({"name": "unet", "channels": (4, 8)}, least_patch_share=0.6)
    least = fit_training(asked, CPU, 0)
    assert least.saving.patch_share == 0.625 and least.job.training_patch == (20, 20, 20)
    assert (
        fit_training(job({"name": "unet", "channels": (4, 8)}, least_patch_share=1.0), CPU, 0).saving.patch_share == 1
    )


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
        ("training: {patch_share: 0.1}", "patch_share"),
        ("training: {patch_share: 1.5}", "patch_share"),
        ("training: {least_patch_share: 0}", "least_patch_share"),
    ],
)
def test_what_cannot_be_trained_is_a_mistake_of_the_job(text, reason):
    with pytest.raises(ConfigError, match=reason):
        parse_job(text, "job.yaml")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_sites(tmp_path_factory.mktemp("data"), site_1=4, site_2=4)


@pytest.fixture(scope="module")
def asked(tmp_path_factory):
    path = tmp_path_factory.mktemp("job") / "job.yaml"
    return load_job(
        write_job(
            path,
            data={"patch_voxels": [32, 32, 16]},
            training={"steps_per_round": 2, "precision": "fp32"},
            federation={"rounds": 2},
            personal={"fine_tuning_steps": 2, "fine_tuning_checks": 1},
        )
    )


def test_a_site_with_little_memory_takes_part_with_the_whole_network(data, asked, tmp_path):
    """Its share is what it would be with more memory, bit for bit: it computes again, on the same patches."""
    plain = training_memory(ready_network(asked, CPU), asked, CPU) / 2**20
    results, weights = [], []
    for name, share in (("much", 2.0), ("little", 0.99)):
        folder = tmp_path / name
        sites = settings(data, folder, {"site-1": share * plain, "site-2": 2 * plain})
        wire = Wire(rehearsal_channel(asked, sites))
        results.append(rehearse(asked, sites, folder / "out", wire))
        weights.append((folder / "out" / "model" / "last.safetensors").read_bytes())
    much, little = results
    assert little.sites["site-1"].saving.recompute and not much.sites["site-1"].saving.recompute
    assert not little.sites["site-2"].saving.recompute
    assert weights[0][-1000:] == weights[1][-1000:], "the tensors lie at the file's end"
    assert [each.dice for each in little.rounds] == [each.dice for each in much.rounds]
    kept = little.personal.sites["site-1"].models
    assert all(0 < model.memory_bytes <= 0.99 * plain * 2**20 for model in kept.values())


def test_a_site_with_less_memory_trains_on_smaller_patches(data, asked, tmp_path):
    budget = 1.01 * fit_training(asked, CPU, 0).memory_bytes / 2**20
    result = rehearse(asked, settings(data, tmp_path, {"site-1": budget, "site-2": 100.0}), tmp_path / "out")
    assert result.status == "finished" and len(result.rounds) == 2
    assert result.sites["site-1"].saving.patch_share < 1 == result.sites["site-2"].saving.patch_share


def test_a_budget_that_holds_no_training_step_names_what_it_would_take(data, asked, tmp_path, caplog):
    with pytest.raises(FederationError, match="does not fit the site's device"):
        rehearse(asked, settings(data, tmp_path, {"site-1": 0.05, "site-2": 100.0}), tmp_path / "out")
    assert "memory_budget_gib: training the job's network takes" in caplog.text and "at least" in caplog.text
