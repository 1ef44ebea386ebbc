"""One network in several widths: what they share, and a federation of sites of unequal memory, without FLARE."""

import copy
from itertools import pairwise

import pytest
import torch

from clients.joining import join
from clients.widths import SiteWidths
from fl_app.config import Job
from fl_app.config_file import parse_job
from fl_app.data.cases import find_cases
from fl_app.data.preparation import prepare_cases
from fl_app.errors import BudgetError, ConfigError, FederationError
from fl_app.model_file import load_model
from fl_app.networks.registry import build_network, exchanged_names
from fl_app.networks.widths import WIDTHS, Width, build_width, parts_of, read_width, whole_names
from fl_app.prediction.predictor import Predictor
from fl_app.rehearsal import rehearsal_channel, rehearse
from fl_app.reports.page import write_report
from fl_app.site import SiteSettings
from fl_app.training.cost import window_seconds
from fl_app.training.fitting import fit_training, training_memory
from fl_app.training.nested import NestedTrainer
from fl_app.training.trainer import Trainer
from tests.federation import write_sites
from tests.test_search_federation import Wire, search_job, settings
from tests.volumes import SPACING_MM, write_decathlon

CPU = torch.device("cpu")


@pytest.fixture(scope="module", params=["instance", "batch"])
def job(request):
    return parse_job(
        f"network: {{channels: [8, 12, 16], normalisation: {request.param}}}\n"
        "data: {patch_voxels: [16, 16, 16]}\nsearch: {strategy: width}\n",
        "job.yaml",
    )


def widened(job, narrow, wide):
    """The wider network with the narrower one's values, and nothing but zeros beside them."""
    network = build_width(job, Width(wide))
    zeros = {
        name: torch.zeros_like(value) if value.is_floating_point() and "running_var" not in name else value
        for name, value in network.state_dict().items()
    }
    network.load_state_dict({**zeros, **narrow.state_dict()})
    return network.eval()


@pytest.mark.parametrize(("narrow", "wide"), [(1, 8), (3, 4), (5, 8)])
def test_a_narrower_network_is_the_first_channels_of_a_wider_one(job, narrow, wide):
    """With what the wider one has beside it at zero, both compute the same: also behind skip connections."""
    small = build_width(job, Width(narrow)).eval()
    image = torch.rand(2, 1, 16, 16, 16)
    torch.testing.assert_close(widened(job, small, wide)(image), small(image))


def test_the_widest_is_the_jobs_own_network(job):
    own, widest = build_network(job), build_width(job, Width(8))
    image = torch.rand(2, 1, 16, 16, 16)
    assert torch.equal(own(image), widest(image))
    assert sum(each.numel() for each in widest.state_dict().values()) == sum(
        each.numel() for each in own.state_dict().values()
    )
    assert whole_names(list(widest.state_dict())) == set(own.state_dict())


def test_each_width_holds_what_the_narrower_ones_do_and_more(job):
    states = [build_width(job, Width(eighths)).state_dict() for eighths in WIDTHS]
    for narrow, wide in pairwise(states):
        assert narrow.keys() < wide.keys()
        assert all(torch.equal(value, wide[name]) for name, value in narrow.items())


def test_values_that_are_loaded_are_those_that_come_out(job):
    network = build_width(job, Width(5))
    values = {name: torch.rand(each.shape).to(each.dtype) for name, each in network.state_dict().items()}
    network.load_state_dict(values)
    assert all(torch.equal(each, values[name]) for name, each in network.state_dict().items())
    before = {name: each.clone() for name, each in network.state_dict().items()}
    some = {name: torch.zeros_like(values[name]) for name in list(values)[::3]}
    network.load_state_dict(some, strict=False)
    for name, each in network.state_dict().items():
        assert torch.equal(each, some.get(name, before[name]))


def test_a_file_with_too_little_or_a_wrong_shape_is_refused(job):
    network = build_width(job, Width(4))
    values = network.state_dict()
    part = next(name for name in values if name.endswith("weight.width_2"))
    with pytest.raises(RuntimeError, match="width_2"):
        network.load_state_dict({name: value for name, value in values.items() if name != part})
    with pytest.raises(RuntimeError, match=r"size mismatch for .*width_2"):
        network.load_state_dict({**values, part: values[part][:-1]})


def test_local_normalisation_keeps_all_parts_at_home(job):
    network = build_width(job, Width(3))
    travels = exchanged_names(network, "local")
    assert travels and not [name for name in travels if ".adn.N." in name]
    assert len(exchanged_names(network, "average")) > len(travels)


@pytest.fixture(scope="module")
def cases(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cases")
    return prepare_cases(find_cases(write_decathlon(folder / "data")).cases, small().data, folder / "cache")


def small():
    return Job.model_validate(
        {
            "data": {"spacing_mm": SPACING_MM, "patch_voxels": (16, 16, 16)},
            "network": {"channels": (4, 8), "residual_units": 1},
            "training": {"batch_size": 1, "precision": "fp32"},
            "search": {"strategy": "width"},
        }
    )


def taking_turns(cases, share):
    whole, part = (Trainer(small(), cases, CPU, "site", build_width(small(), Width(each))) for each in (8, 2))
    return NestedTrainer(whole, part, share), part.all_values().keys()


def test_dittos_pull_finds_the_parts(cases):
    """With a pull that outweighs the loss, every part of every weight comes near to where it is pulled."""
    training = {"learning_rate": 0.01, "optimizer": "sgd", "schedule": "constant", "gradient_clip": 0.0}
    job = small().model_copy(update={"training": small().training.model_copy(update=training)})
    trainer = Trainer(job, cases, CPU, "site", build_width(job, Width(5)))
    goal = {name: value + 1 for name, value in trainer.shared_values().items()}
    trainer.train(1, 8, 1, (50.0, goal))
    for name, value in trainer.shared_values().items():
        assert (goal[name] - value).abs().mean() < 0.2, name


def test_the_part_and_the_whole_take_turns(cases):
    trainer, names = taking_turns(cases, 1.0)
    before = trainer.all_values()
    done = trainer.train(1, 3, 2)
    after = trainer.all_values()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed and changed <= names and done.steps == 3 and done.loss > 0, "all steps were the part's"
    trainer, names = taking_turns(cases, 0.5)
    trainer.train(1, 2, 2)
    changed = {name for name, value in trainer.all_values().items() if not torch.equal(before[name], value)}
    assert changed - names, "the whole has trained, too"


def test_taking_turns_goes_on_where_it_was(cases):
    trainer, _ = taking_turns(cases, 0.5)
    trainer.train(1, 2, 2)
    values, state = trainer.all_values(), copy.deepcopy(trainer.optimizer_state())
    trainer.train(2, 2, 2)
    again, _ = taking_turns(cases, 0.5)
    again.load(values)
    again.restore_optimizer(state)
    again.train(2, 2, 2)
    assert again.holds(trainer.all_values())


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"version":1}', '{"version":1,"eighths":9}', '{"version":2,"eighths":1}']
)
def test_what_is_no_width_is_refused(text):
    assert read_width(Width(3).to_json()) == Width(3)
    with pytest.raises(ConfigError, match="no width"):
        read_width(text)


def test_channels_that_shrink_have_no_widths():
    with pytest.raises(ConfigError, match=r"network\.channels that do not shrink"):
        parse_job("network: {channels: [8, 16, 4]}\nsearch: {strategy: width}\n", "job.yaml")


def test_other_networks_come_in_one_width():
    with pytest.raises(ConfigError, match=r"network\.name unet for search\.strategy width"):
        parse_job("network: {name: segresnet}\nsearch: {strategy: width}\n", "job.yaml")


def test_a_site_takes_a_narrower_network_before_small_patches(tmp_path):
    text = (
        "data: {patch_voxels: [32, 32, 32]}\nnetwork: {channels: [8, 16, 32]}\nsearch: {strategy: width}\n"
        "training: {batch_size: 1, precision: fp32, least_patch_share: %s}"
    )
    whole, large, small = (parse_job(text % share, "job.yaml") for share in (1, 0.875, 0.75))

    def taken(budget):
        settings = SiteSettings(data=tmp_path, memory_budget_gib=budget / 2**30)
        widest = SiteWidths(small, "site-1", settings, None, CPU).ready(fit_training(small, CPU, budget)).widest
        assert widest.measured_bytes <= budget
        return widest.eighths, widest.saving.patch_share

    def least(job, eighths):
        return fit_training(job, CPU, 0, Width(eighths).to_json()).memory_bytes

    # three quarters of the channels come before patches of 7/8 of the sides
    budget = max(least(whole, 6), least(large, 8))
    assert budget < least(whole, 8)
    eighths, share = taken(budget)
    assert 6 <= eighths < 8 and share == 1
    assert least(small, 8) < least(large, 8)
    eighths, share = taken(least(large, 8) - 1)
    assert 1 < eighths < 8 and share >= 0.875
    # where not even the narrowest network can be trained on large patches
    assert taken(least(large, 1) - 1)[1] == 0.75


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_sites(tmp_path_factory.mktemp("data"), site_1=4, site_2=5, site_3=4)


def with_large_patches(job):
    """Networks become narrower before patches become smaller than that."""
    return job.model_copy(update={"training": job.training.model_copy(update={"least_patch_share": 0.875})})


@pytest.fixture(scope="module")
def run(data, tmp_path_factory):
    """Three sites: two with room for a part of the network, one for all of it."""
    folder = tmp_path_factory.mktemp("widths")
    job = search_job(folder, strategy="width")
    thrifty = [fit_training(with_large_patches(job), CPU, 0, Width(n).to_json()).memory_bytes / 2**20 for n in (4, 6)]
    plain = training_memory(build_network(job), job, CPU) / 2**20
    budgets = {"site-1": 1.01 * thrifty[0], "site-2": 1.01 * thrifty[1], "site-3": 1.01 * plain}
    sites = settings(data, folder, budgets)
    wire = Wire(rehearsal_channel(job, sites))
    return job, rehearse(job, sites, folder / "out", wire), wire.sent, folder


def test_every_site_trains_the_widest_network_that_fits(run):
    job, result, _, _ = run
    widths = {site: read_width(each.architecture).eighths for site, each in result.search.sites.items()}
    assert widths == {"site-1": 4, "site-2": 6, "site-3": 8}
    for site, each in result.search.sites.items():
        large = with_large_patches(job)
        fit = fit_training(large, CPU, each.budget_bytes, each.architecture)
        assert each.measured_bytes == fit.memory_bytes <= each.budget_bytes and each.saving == fit.saving
        if widths[site] < 8:
            assert not fit_training(large, CPU, each.budget_bytes, Width(widths[site] + 1).to_json()).fits
        kept = result.personal.sites[site]
        assert kept.models["searched"].memory_bytes == each.measured_bytes
        assert all(model.memory_bytes <= each.budget_bytes for model in kept.models.values())
        assert ("federated" in kept.models) == fit_training(job, CPU, each.budget_bytes).fits
        assert ("consensus" in kept.models) == (site != "site-1")
    assert result.search.sites["site-1"].saving.recompute and not result.search.sites["site-3"].saving.recompute
    assert len(result.search.rounds) == job.search.rounds and not result.search.supernet_rounds


def test_what_one_site_alone_holds_never_travels_after_its_first_round(run):
    job, result, sent, _ = run
    names = {
        site: set(build_width(job, read_width(each.architecture)).state_dict())
        for site, each in result.search.sites.items()
    }
    common = names["site-2"]  # the widest site holds these too
    for _, site, facts, down, up, _ in sent:
        if facts.get("network") == "searched" and facts["round"] > 1:
            assert up <= common and down <= common, site
    assert result.search.sites["site-3"].own_values > 0 == result.search.sites["site-2"].own_values


def test_values_are_averaged_over_the_sites_that_hold_them(run):
    """Site 1's own model has the shared values of the best round, which all three have trained."""
    job, _, _, folder = run
    shared, info = load_model(folder / "out" / "model" / "searched" / "best.safetensors")
    narrowest = build_width(job, read_width(info.architectures[0])).state_dict()
    start = build_width(job, Width(8)).state_dict()
    assert narrowest.keys() < shared.keys()
    assert all(not torch.equal(shared[name], start[name]) for name in narrowest if "conv.weight" in name)


class First(Wire):
    """Remembers the values of the first payload of the widths, too."""

    values = None

    def ask(self, task, payloads, exchange, answer):
        for payload in payloads.values():
            if payload.facts.get("network") == "searched" and self.values is None:
                self.values = {name: value.clone() for name, value in payload.values.items()}
        super().ask(task, payloads, exchange, answer)


@pytest.mark.parametrize("holders", [1, 2])
def test_widths_go_on_from_the_jobs_own_network_where_several_have_trained_it(data, tmp_path, holders):
    """What one site alone has trained is its own update, which the others must not see."""
    job = search_job(tmp_path, strategy="width", saving={"least_patch_share": 1.0, "most_frozen_share": 0.0})
    narrow = fit_training(job, CPU, 0, Width(4).to_json()).memory_bytes / 2**20
    sites = settings(data, tmp_path, {"site-1": 100.0, "site-2": 100.0 if holders == 2 else 1.01 * narrow})
    wire = First(rehearsal_channel(job, sites))
    result = rehearse(job, sites, tmp_path / "out", wire)
    assert len(result.rounds[0].sites) == holders
    trained, _ = load_model(tmp_path / "out" / "model" / "last.safetensors")
    begun = parts_of(job, trained if holders == 2 else build_network(job).state_dict())
    assert wire.values and all(torch.equal(value, begun[name]) for name, value in wire.values.items())
    assert not torch.equal(
        trained["model.0.conv.unit0.conv.weight"], build_network(job).state_dict()["model.0.conv.unit0.conv.weight"]
    )


def test_a_job_may_train_what_fits_and_nothing_else(data, tmp_path):
    described = search_job(tmp_path, strategy="width").model_dump()
    described["federation"]["rounds"] = 0
    job = Job.model_validate(described)
    sites = settings(data, tmp_path, {"site-1": 100.0, "site-2": 100.0})
    result = rehearse(job, sites, tmp_path / "out")
    assert result.status == "finished" and not result.rounds and len(result.search.rounds) == job.search.rounds
    assert all("federated" not in each.models for each in result.personal.sites.values())
    assert (tmp_path / "site-1" / "model.safetensors").exists()
    assert not (tmp_path / "out" / "model" / "best.safetensors").exists()
    assert "in two rounds" in write_report(tmp_path / "out").read_text()


def test_a_job_that_trains_nothing_is_a_mistake():
    with pytest.raises(ConfigError, match="nothing would be trained"):
        parse_job("federation: {rounds: 0}\n", "job.yaml")


def test_the_models_of_server_and_sites_predict(run):
    folder = run[3]
    for path in (folder / "out" / "model" / "searched" / "best.safetensors", folder / "site-2" / "model.safetensors"):
        assert sum(each.numel() for each in Predictor(path, CPU).network.parameters()) > 0


def test_a_site_that_comes_later_takes_the_widest_that_several_have_trained(run, data, tmp_path):
    _, result, _, folder = run
    report = join(folder / "out" / "model", "site-1", settings(data, tmp_path, {"site-1": 100.0})["site-1"])
    assert report.models["searched"].parameters == result.search.sites["site-2"].parameters
    with pytest.raises(BudgetError, match="narrowest form of"):
        join(folder / "out" / "model", "site-1", settings(data, tmp_path, {"site-1": 0.01})["site-1"])


def test_a_network_that_predicts_too_slowly_is_not_taken(data, tmp_path, monkeypatch):
    """A clock by which a window takes a second for each channel of the first layer: 16 in the job's own network."""
    job = search_job(tmp_path, strategy="width")

    def channels(network, patch, device, precision):
        assert patch == job.data.patch_voxels and precision == "fp32"
        return next(each for each in network.modules() if isinstance(each, torch.nn.Conv3d)).out_channels

    monkeypatch.setattr("fl_app.training.fitting.window_seconds", channels)
    sites = settings(data, tmp_path, {"site-1": 1024.0, "site-2": 1024.0})
    sites["site-1"] = sites["site-1"].model_copy(update={"window_budget_s": 10.5})
    result = rehearse(job, sites, tmp_path / "out")
    widths = {site: read_width(each.architecture).eighths for site, each in result.search.sites.items()}
    assert widths == {"site-1": 5, "site-2": 8}
    sites["site-1"] = sites["site-1"].model_copy(update={"window_budget_s": 0.5})
    with pytest.raises(FederationError, match="does not fit the site's device"):
        rehearse(job, sites, tmp_path / "again")


def test_a_window_takes_longer_the_larger_it_is():
    network = build_network(small())
    small_window, large = (window_seconds(network, (side,) * 3, CPU, "fp32") for side in (8, 64))
    assert 0 < small_window < large
