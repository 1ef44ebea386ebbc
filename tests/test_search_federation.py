"""A whole architecture search with two sites of unequal memory, without FLARE: what they get, and what travels."""

import json

import pytest
import torch

from clients.joining import join
from clients.search import SiteSearch
from fl_app.config.space import SearchSpace
from fl_app.config_file import load_job, parse_job
from fl_app.data.site_data import load_site_data
from fl_app.errors import ConfigError, FederationError
from fl_app.messages import MAIN, PERSONALISE, SEARCHED
from fl_app.model_file import load_model
from fl_app.networks.registry import exchanged_names
from fl_app.networks.space.architecture import read_architecture
from fl_app.networks.space.decoding import least_network
from fl_app.networks.space.supernet import DiscreteNetwork, Supernet, weight_names
from fl_app.rehearsal import rehearsal_channel, rehearse
from fl_app.search.memory import calibrate
from fl_app.site import SiteSettings
from fl_app.training.fitting import fit_training, training_memory
from tests.architectures import random_architecture
from tests.federation import fedspleen, write_job, write_sites

SPACE = {"blocks": 3, "depths": 2, "channels": 4}
SITES = {"site-1": 0.45, "site-2": 2.0}  # MiB


class Wire:
    """A channel that remembers what went over it."""

    def __init__(self, channel):
        self._channel = channel
        self.sent = []

    def ask(self, task, payloads, exchange, answer):
        def heard(site, values, report):
            payload = payloads[site]
            self.sent.append((task, site, dict(payload.facts), set(payload.values), set(values), report))
            return answer(site, values, report)

        self._channel.ask(task, payloads, exchange, heard)


class Killed(Exception):
    pass


class Ending:
    """A channel whose server is killed after some tasks."""

    def __init__(self, channel, end):
        self._channel, self._left = channel, end

    def ask(self, task, payloads, exchange, answer):
        self._left -= 1
        if self._left < 0:
            raise Killed
        self._channel.ask(task, payloads, exchange, answer)


def search_job(folder, normalisation="average", ditto=0.0, saving=None, **search):
    return load_job(
        write_job(
            folder / "job.yaml",
            training={"steps_per_round": 2, "precision": "fp32", **(saving or {})},
            network={"channels": [16, 32]},
            federation={"rounds": 1, "normalisation": normalisation},
            search={
                "strategy": "sampling",
                "space": SPACE,
                "supernet_rounds": 1,
                "supernet_steps": 4,
                "generations": 2,
                "candidates": 3,
                "rounds": 2,
                **search,
            },
            personal={"fine_tuning_steps": 2, "fine_tuning_shares": [1.0], "ditto": ditto},
        )
    )


def settings(data, folder, budgets=SITES):
    return {
        site: SiteSettings(
            data=data / site,
            threads=1,
            cache=data / "cache",
            state=folder / site / "state",
            output=folder / site,
            memory_budget_gib=mebibytes / 1024,
        )
        for site, mebibytes in budgets.items()
    }


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_sites(tmp_path_factory.mktemp("data"), site_1=4, site_2=5)


@pytest.fixture(scope="module")
def more_data(tmp_path_factory):
    return write_sites(tmp_path_factory.mktemp("more_data"), site_1=5, site_2=5)


@pytest.fixture(scope="module")
def run(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("search")
    job = search_job(folder)
    sites = settings(data, folder)
    wire = Wire(rehearsal_channel(job, sites))
    return job, rehearse(job, sites, folder / "out", wire), wire.sent, folder


def test_every_site_gets_a_network_in_its_own_budget(run):
    job, result, _, _ = run
    space = job.search.space
    networks = {site: read_architecture(each.architecture, space) for site, each in result.search.sites.items()}
    consensus = read_architecture(result.search.consensus, space)
    for site, each in result.search.sites.items():
        assert each.budget_bytes == int(SITES[site] / 1024 * 2**30)
        assert max(each.predicted_bytes, each.measured_bytes) <= each.budget_bytes
        assert consensus.is_subset(networks[site])
    assert [len(each.sites) for each in result.search.rounds] == [2, 2]


def test_a_site_whose_memory_the_plain_network_breaks_does_not_train_it(run):
    _, result, sent, _ = run
    fits = {site: each.main_bytes <= each.budget_bytes for site, each in result.search.sites.items()}
    trained = {site for task, site, facts, *_ in sent if task == "train" and facts["network"] == "main"}
    assert fits == {"site-1": False, "site-2": True} and trained == {"site-2"}
    assert set(result.final.sites) == {"site-2"}
    for site, kept in result.personal.sites.items():
        assert all(model.memory_bytes <= result.search.sites[site].budget_bytes for model in kept.models.values())


def test_what_a_single_site_has_trained_of_the_supernet_is_not_for_all_to_see(run):
    """Its mean would be that site's update: it stays as it was. What both have trained has changed."""
    job, result, sent, folder = run
    space = job.search.space
    one, other = (
        set(report["touched"])
        for task, _, facts, _, _, report in sent
        if task == "train" and facts["network"] == "supernet"
    )
    found = {text for each in result.search.sites.values() for text in [each.architecture]}
    later = {name for text in found for name in weight_names(space, read_architecture(text, space))}
    values, _ = load_model(folder / "out" / "model" / "searched" / "supernet.safetensors")
    start = Supernet(space, 1, job.seed).state_dict()
    same = {name for name in values if torch.equal(values[name], start[name])}
    assert (one ^ other) - later, "the sites have trained different paths"
    assert (one ^ other) - later <= same and not (one & other) & same


def test_each_site_keeps_the_best_of_its_models_by_its_own_validation(run):
    _, result, _, folder = run
    for site, kept in result.personal.sites.items():
        best = max(model.validation_dice or 0.0 for model in kept.models.values())
        assert kept.models[kept.chosen].validation_dice == best
        assert (folder / site / "model.safetensors").exists()
    assert set(result.personal.sites["site-1"].models) >= {"searched", "searched tuned"}
    assert set(result.personal.sites["site-2"].models) >= {"federated", "federated tuned", "searched"}


class Favouring:
    """A channel on which all sites' scores are for one network."""

    def __init__(self, channel, network):
        self._channel, self._network = channel, network

    def ask(self, task, payloads, exchange, answer):
        for payload in payloads.values() if task == PERSONALISE else ():
            for network, told in payload.facts["networks"].items():
                assert told["score"] is None, "of two sites each would know the other's"
                told["score"] = float(network == self._network)
        self._channel.ask(task, payloads, exchange, answer)


@pytest.mark.parametrize(
    ("favourite", "wanted"),
    [(MAIN, {"federated", "federated tuned"}), (SEARCHED, {"searched", "searched tuned", "consensus"})],
)
def test_a_site_with_a_single_validation_case_listens_to_what_all_say(data, tmp_path, favourite, wanted):
    job = search_job(tmp_path)
    sites = settings(data, tmp_path)
    result = rehearse(job, sites, tmp_path / "out", Favouring(rehearsal_channel(job, sites), favourite))
    assert result.personal.sites["site-2"].chosen in wanted


def test_a_value_that_one_site_alone_holds_never_comes_back(run):
    job, result, sent, _ = run
    space = job.search.space
    names = {s: weight_names(space, read_architecture(e.architecture, space)) for s, e in result.search.sites.items()}
    shared = set(names["site-1"]) & set(names["site-2"])
    for task, site, facts, down, up, _ in sent:
        if task == "train" and facts["network"] == "searched":
            assert up == shared
            assert down == (set(names[site]) if facts["round"] == 1 else shared)
    for each in result.search.sites.values():
        values = DiscreteNetwork(space, read_architecture(each.architecture, space), 1).state_dict()
        assert each.own_values == sum(value.numel() for name, value in values.items() if name not in shared)


def test_a_site_sends_at_most_its_share_of_the_supernet(run):
    job, result, sent, _ = run
    supernet = Supernet(job.search.space, 1).state_dict()
    assert result.search.supernet_parameters == sum(value.numel() for value in supernet.values())
    for task, _, facts, down, up, report in sent:
        if task == "train" and facts["network"] == "supernet":
            assert down == set(supernet) and up == set(report["touched"])
            assert sum(supernet[name].numel() for name in up) <= 0.5 * result.search.supernet_parameters


def test_what_tells_of_an_architecture_is_a_few_hundred_bytes_and_no_logits(run):
    _, result, sent, _ = run
    for task, _, _, _, up, report in sent:
        if task in ("score", "derive", "personalise"):
            assert up == set() and len(json.dumps(report)) < 4000
    assert len(result.search.generations) == 2


def test_the_saved_network_is_the_searched_one(run):
    job, result, _, folder = run
    values, info = load_model(folder / "out" / "model" / "searched" / "best.safetensors")
    assert info.architectures[0] == result.search.consensus
    space = job.search.space
    network = DiscreteNetwork(space, read_architecture(info.architectures[0], space), 1)
    network.load_state_dict({name: values[name] for name in network.state_dict()})
    image = torch.rand(1, 1, 16, 16, 8)
    supernet = Supernet(space, 1)
    supernet.load_state_dict(supernet.state_dict() | values)
    assert torch.equal(network(image), supernet(image, network.architecture))


def budget_beside(run, share):
    """A share of what training the consensus takes, in GiB."""
    job, result, *_ = run
    consensus = DiscreteNetwork(job.search.space, read_architecture(result.search.consensus, job.search.space), 1)
    return share * training_memory(consensus, job, torch.device("cpu")) / 2**30


def joined_network(run, out, budget):
    """The network that a site keeps that came later; its values are whole, and it fits."""
    job, *_ = run
    values, info = load_model(out / "model.safetensors")
    network = read_architecture(info.architectures[0], job.search.space)
    module = DiscreteNetwork(job.search.space, network, 1)
    assert set(values) == set(module.state_dict())
    assert training_memory(module, job, torch.device("cpu")) <= budget * 2**30
    return network


def test_a_site_that_comes_later_gets_a_network_in_a_budget_nobody_tried(run, more_data, tmp_path):
    job, result, _, folder = run
    budget, out = budget_beside(run, 3.0), tmp_path / "out"
    data = ["--data", more_data / "site-2"]
    done = fedspleen("join", folder / "out", *data, "--out", out, "--memory-budget-gib", budget)
    assert done.returncode == 0, done.stderr
    assert "searched tuned" in done.stdout and "(kept)" in done.stdout
    consensus = read_architecture(result.search.consensus, job.search.space)
    assert consensus.is_subset(joined_network(run, out, budget))


def test_a_site_that_comes_later_with_too_little_memory_for_the_consensus_gets_another_network(
    run, more_data, tmp_path
):
    job, result, _, folder = run
    budget = budget_beside(run, 0.9)
    settings = SiteSettings(data=more_data / "site-2", output=tmp_path, memory_budget_gib=budget, threads=1)
    report = join(folder / "out" / "model", "site-3", settings)
    assert "federated" not in report.models
    consensus = read_architecture(result.search.consensus, job.search.space)
    assert not consensus.is_subset(joined_network(run, tmp_path, budget))


def test_joining_a_result_without_a_search_says_what_is_missing(more_data, tmp_path):
    done = fedspleen("join", tmp_path, "--data", more_data / "site-2", "--out", tmp_path / "out")
    assert done.returncode == 2 and "name the result of a job with a search" in done.stderr


@pytest.mark.promise("server: power loss, `kill -9`")
def test_a_search_that_is_ended_anywhere_goes_on_to_the_same_networks(run, data, tmp_path):
    job, whole, _, folder = run
    wanted, _ = load_model(folder / "out" / "model" / "searched" / "best.safetensors")
    # in the supernet's round, among the generations, and while the found networks are trained
    for end in (3, 5, 7):
        sites = settings(data, tmp_path / str(end))
        with pytest.raises(Killed):
            rehearse(job, sites, tmp_path / str(end) / "out", Ending(rehearsal_channel(job, sites), end))
        again = rehearse(job, sites, tmp_path / str(end) / "out")
        assert len(again.restarts) == 1
        assert again.search.consensus == whole.search.consensus
        values, _ = load_model(tmp_path / str(end) / "out" / "model" / "searched" / "best.safetensors")
        assert all(torch.equal(value, values[name]) for name, value in wanted.items())
        assert again.personal == whole.personal


@pytest.mark.parametrize(
    ("mode", "strategy", "rule"),
    [
        ("consensus", "sampling", "none"),
        ("free", "sampling", "synflow"),
        ("nested", "sampling", "naswot"),
        ("nested", "random", "none"),
    ],
)
def test_other_ways_to_search_keep_to_the_budgets(data, tmp_path, mode, strategy, rule):
    job = search_job(tmp_path, mode=mode, strategy=strategy, filter=rule)
    result = rehearse(job, settings(data, tmp_path), tmp_path / "out")
    found = result.search.sites
    assert all(each.measured_bytes <= each.budget_bytes for each in found.values())
    if mode == "consensus":
        assert {each.architecture for each in found.values()} == {result.search.consensus}
    assert (len(result.search.generations) == 0) == (strategy == "random")


def test_networks_that_compute_again_fit_where_none_did(data, tmp_path):
    saving = {"recompute": True, "early_update": True}
    plain, thrifty = search_job(tmp_path), search_job(tmp_path, saving=saving)
    cpu = torch.device("cpu")
    least, needed = (
        model.total(least_network(model))
        for model in (calibrate(job, job.search.space, cpu) for job in (plain, thrifty))
    )
    assert needed < 0.9 * least
    result = rehearse(
        thrifty,
        settings(data, tmp_path, {"site-1": (needed + least) / 2 / 2**20, "site-2": 2.0}),
        tmp_path / "out",
    )
    for site, found in result.search.sites.items():
        assert max(found.predicted_bytes, found.measured_bytes) <= found.budget_bytes
        models = result.personal.sites[site].models.values()
        assert all(model.memory_bytes <= found.budget_bytes for model in models)
    assert result.search.sites["site-1"].budget_bytes < least


def test_normalisation_and_dittos_model_stay_at_each_site(data, tmp_path):
    job = search_job(tmp_path, normalisation="local", ditto=0.1)
    sites = settings(data, tmp_path, dict.fromkeys(SITES, 2.0))
    wire = Wire(rehearsal_channel(job, sites))
    result = rehearse(job, sites, tmp_path / "out", wire)
    normalisations = {
        f"{prefix}.{name}"
        for prefix, layer in Supernet(job.search.space, 1).named_modules()
        if isinstance(layer, torch.nn.InstanceNorm3d)
        for name in layer.state_dict()
    }
    for _, _, facts, down, up, _ in wire.sent:
        if facts.get("network") in ("supernet", "searched"):
            assert not (down | up) & normalisations
    for kept in result.personal.sites.values():
        assert {"ditto", "searched", "searched ditto"} <= set(kept.models)


@pytest.mark.parametrize("strategy", ["sampling", "gradient"])
def test_networks_are_compared_with_the_sites_own_normalisation(strategy, more_data, tmp_path):
    job = search_job(tmp_path, normalisation="local", strategy=strategy, space=SPACE | {"blocks": 2})
    site = SiteSettings(data=more_data / "site-1", cache=more_data / "cache", memory_budget_gib=6 / 1024)
    held = load_site_data(site.data, job.data, job.seed, site.cache)
    search = SiteSearch(job, "site-1", site, held, torch.device("cpu"), None, 0, lambda: None)
    search.ready(fit_training(job, torch.device("cpu"), 6 * 2**20))
    supernet = Supernet(job.search.space, 1)
    values = {name: supernet.state_dict()[name] for name in exchanged_names(supernet, "local")}
    asked = {"architectures": [random_architecture(job.search.space, 0).to_json()]}
    before = search.score(values, asked).losses
    search.train(values, {"round": 1})
    assert search.score(values, asked).losses != before, "with the same values of others, its own have learned"


def test_a_search_by_gradients_keeps_the_logits_at_home_and_goes_on_after_a_restart(more_data, tmp_path):
    data = more_data
    job = search_job(tmp_path, strategy="gradient", supernet_rounds=2, space=SPACE | {"blocks": 2})
    budgets = {"site-1": 4.0, "site-2": 6.0}
    sites = settings(data, tmp_path, budgets)
    wire = Wire(rehearsal_channel(job, sites))
    result = rehearse(job, sites, tmp_path / "out", wire)
    supernet = set(Supernet(job.search.space, 1).state_dict())
    for task, _, facts, _, up, report in wire.sent:
        if task == "train" and facts["network"] == "supernet":
            assert up == supernet == set(report["touched"])
        if task == "propose":
            assert set(report) == {"architecture"} and not up
    assert sum(task == "propose" for task, *_ in wire.sent) == 2
    consensus = read_architecture(result.search.consensus, job.search.space)
    for each in result.search.sites.values():
        assert each.measured_bytes <= each.budget_bytes
        assert consensus.is_subset(read_architecture(each.architecture, job.search.space))

    again = settings(data, tmp_path / "again", budgets)
    with pytest.raises(Killed):
        rehearse(job, again, tmp_path / "again" / "out", Ending(rehearsal_channel(job, again), 6))
    assert rehearse(job, again, tmp_path / "again" / "out").search.consensus == result.search.consensus


def test_a_supernet_that_breaks_a_budget_is_refused_with_what_it_takes(more_data, tmp_path, caplog):
    job = search_job(tmp_path, strategy="gradient")
    with pytest.raises(FederationError, match="does not fit the site's device"):
        rehearse(job, settings(more_data, tmp_path), tmp_path / "out")
    assert "trains all networks at once, which takes" in caplog.text


def test_a_budget_that_no_network_fits_names_the_least_one_that_works(data, tmp_path, caplog):
    job = search_job(tmp_path)
    with pytest.raises(FederationError, match="does not fit the site's device"):
        rehearse(job, settings(data, tmp_path, {"site-1": 0.05, "site-2": 2.0}), tmp_path / "out")
    assert "the least that one fits in is" in caplog.text


def test_a_patch_that_the_space_cannot_halve_is_a_mistake_of_the_job():
    with pytest.raises(ConfigError, match=r"patch_voxels.*multiples of 16"):
        parse_job(
            "data: {patch_voxels: [24, 24, 24]}\nnetwork: {channels: [8, 16]}\n"
            f"search: {{strategy: sampling, space: {{depths: {SearchSpace().depths}}}}}"
        )
