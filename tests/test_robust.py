import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fl_app.errors import ConfigError, FederationError
from server.aggregation import AGGREGATORS, build_aggregate, fewest_sites

torch.set_num_threads(1)  # small tensors: threads only cost time

SITES = tuple("abcde")
ROBUST = tuple(name for name in AGGREGATORS if name != "mean")


def model():
    random = torch.Generator().manual_seed(0)
    return {"conv": torch.randn(3, 4, generator=random), "bias": torch.randn(4, generator=random)}


def update(seed, scale=1.0):
    """Sites agree, but for some noise."""
    common, own = torch.Generator().manual_seed(99), torch.Generator().manual_seed(seed)
    return {
        name: scale * (torch.randn(value.shape, generator=common) + 0.1 * torch.randn(value.shape, generator=own))
        for name, value in model().items()
    }


def aggregated(name, updates, weights=None, attackers=1, like=None):
    aggregate = build_aggregate(name, like or model(), tuple(updates), attackers)
    for site, each in updates.items():
        aggregate.add(site, each, weights[site] if weights else 1)
    return aggregate.apply(), aggregate


def change_of(after):
    return {name: after[name] - value for name, value in model().items()}


def flat(values):
    return torch.cat([values[name].flatten() for name in sorted(values)])


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


HONEST = {site: update(number) for number, site in enumerate(SITES)}
ATTACKS = {
    "a sign flip": lambda own: {name: -value for name, value in own.items()},
    "a scaling": lambda own: {name: value * 1000 for name, value in own.items()},
    "a scaled sign flip": lambda own: {name: value * -1e6 for name, value in own.items()},
    "noise": lambda own: {name: torch.randn(value.shape) * 30 for name, value in own.items()},
}


@pytest.mark.promise(
    "answers: of ordinary length in a wrong direction",
    "a robust rule (`federation.aggregator`) keeps the model near the others'; `mean` does not",
)
@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("name", ROBUST)
def test_one_bad_site_of_five_does_not_move_the_model_far(name, attack):
    wanted = flat(change_of(aggregated("mean", HONEST)[0]))
    attacked = HONEST | {"c": ATTACKS[attack](HONEST["c"])}
    found = flat(change_of(aggregated(name, attacked)[0]))
    # a shortened update still counts: at worst it takes away 2 of 5 parts of the step
    limit = 0.45 if name == "norm_clipping" else 0.15
    assert float((found - wanted).norm() / wanted.norm()) < limit
    spoiled = flat(change_of(aggregated("mean", attacked)[0]))
    assert float((spoiled - wanted).norm() / wanted.norm()) > limit or attack == "a sign flip"


@pytest.mark.parametrize("name", AGGREGATORS)
@settings(max_examples=25, deadline=None)
@given(order=st.permutations(SITES))
def test_the_order_of_arrival_does_not_matter(name, order):
    weights = {site: 3 + number for number, site in enumerate(SITES)}
    updates = HONEST | {"b": update(7, -50.0)}
    first, one = aggregated(name, updates, weights)
    second, other = aggregated(name, {site: updates[site] for site in order}, weights)
    assert same(first, second) and one.remarks == other.remarks


@pytest.mark.parametrize("name", AGGREGATORS)
def test_sites_that_agree_get_what_they_agree_on(name):
    after, _ = aggregated(name, dict.fromkeys(SITES, update(1)))
    torch.testing.assert_close(flat(change_of(after)), flat(update(1)))
    assert {value.dtype for value in after.values()} == {torch.float32}


numbers = st.lists(st.floats(-1000, 1000, width=32), min_size=5, max_size=9)


def of_one_number(name, values, attackers=1):
    updates = {f"site-{place}": {"w": torch.tensor([value])} for place, value in enumerate(values)}
    return aggregated(name, updates, attackers=attackers, like={"w": torch.zeros(1)})[0]["w"].item()


@given(numbers)
def test_the_median_is_the_middle(values):
    ordered = sorted(values)
    middle = (ordered[(len(values) - 1) // 2] + ordered[len(values) // 2]) / 2
    assert of_one_number("median", values) == pytest.approx(middle, rel=1e-6, abs=1e-30)


@given(numbers, st.integers(0, 2))
def test_the_trimmed_mean_leaves_out_as_many_at_either_end(values, cut):
    kept = sorted(values)[cut : len(values) - cut]
    assert of_one_number("trimmed_mean", values, cut) == pytest.approx(math.fsum(kept) / len(kept), rel=1e-5, abs=1e-4)


def test_clipping_shortens_to_the_median_of_the_norms():
    lengths = [1.0, 2.0, 3.0, 4.0, 100.0]
    updates = {site: {"w": torch.tensor([length, 0.0])} for site, length in zip(SITES, lengths, strict=True)}
    weights = dict(zip(SITES, (1, 1, 1, 1, 6), strict=True))
    after, aggregate = aggregated("norm_clipping", updates, weights, like={"w": torch.zeros(2)})
    assert after["w"].tolist() == pytest.approx([(1 + 2 + 3 + 3 + 6 * 3) / 10, 0])
    assert set(aggregate.remarks) == {"d", "e"}
    assert aggregate.remarks["e"] == "its update was shortened to 0.03 of its length, the median of all"


def test_krum_takes_the_update_nearest_to_its_neighbours():
    # by hand: n 5, f 1, two neighbours each; scores 5, 2, 5, 5+... and the outlier's
    places = dict(zip(SITES, (0.0, 1.0, 2.0, 4.0, 50.0), strict=True))
    updates = {site: {"w": torch.tensor([place])} for site, place in places.items()}
    like = {"w": torch.zeros(1)}
    after, aggregate = aggregated("krum", updates, like=like)
    assert after["w"].item() == 1.0 and set(aggregate.remarks) == {"a", "c", "d", "e"}
    after, aggregate = aggregated("multi_krum", updates, like=like)
    assert after["w"].item() == (0 + 1 + 2 + 4) / 4
    assert aggregate.remarks == {"e": "its update was left out: others lie closer together"}


@pytest.mark.parametrize(("name", "heavy"), [("trimmed_mean", 10**6), ("median", 10**6), ("krum", 10**6)])
def test_a_claimed_weight_does_not_count(name, heavy):
    weights = dict.fromkeys(SITES, 1)
    assert same(aggregated(name, HONEST, weights)[0], aggregated(name, HONEST, weights | {"d": heavy})[0])


@pytest.mark.parametrize("name", AGGREGATORS)
def test_a_bad_update_is_refused_whole(name):
    aggregate = build_aggregate(name, model(), SITES, 1)
    for site in SITES[1:]:
        aggregate.add(site, HONEST[site], 1)
    for broken, reason in (
        ({**HONEST["a"], "bias": torch.full((4,), math.nan)}, "bias holds NaN"),
        ({**HONEST["a"], "bias": torch.zeros(1)}, "shape"),
        ({"conv": HONEST["a"]["conv"]}, "part of the model" if "krum" in name else "1 missing"),
    ):
        with pytest.raises(FederationError, match=reason):
            aggregate.add("a", broken, 1)
    aggregate.add("a", HONEST["a"], 1)
    assert same(aggregate.apply(), aggregated(name, HONEST)[0])


@pytest.mark.parametrize("name", ROBUST)
def test_a_site_that_answers_twice_is_refused(name):
    aggregate = build_aggregate(name, model(), SITES, 1)
    aggregate.add("a", HONEST["a"], 1)
    with pytest.raises(FederationError, match="it answered twice"):
        aggregate.add("a", HONEST["b"], 1)


@pytest.mark.parametrize("name", ["mean", "norm_clipping", "trimmed_mean", "median"])
def test_parts_of_the_model_are_combined_over_those_who_trained_them(name):
    after, _ = aggregated(
        name,
        {site: {"conv": HONEST[site]["conv"]} for site in SITES[:4]} | {"e": {"bias": HONEST["e"]["bias"]}},
        {site: {"conv": 2} for site in SITES[:4]} | {"e": {"bias": 3}},
        like=model() | {"more": torch.ones(2)},
    )
    assert torch.equal(after["more"], torch.ones(2))
    if name != "norm_clipping":
        torch.testing.assert_close(after["bias"], model()["bias"] + HONEST["e"]["bias"])
    conv = torch.stack([HONEST[site]["conv"] for site in SITES[:4]])
    assert bool((after["conv"] - model()["conv"] <= conv.amax(0) + 1e-6).all())


@pytest.mark.parametrize(
    ("name", "attackers", "fewest"),
    [
        ("mean", 1, 1),
        ("norm_clipping", 1, 3),
        ("trimmed_mean", 2, 5),
        ("median", 0, 1),
        ("krum", 1, 5),
        ("multi_krum", 2, 7),
    ],
)
def test_too_few_sites_are_refused_at_the_start_and_in_a_round(name, attackers, fewest):
    assert fewest_sites(name, attackers) == fewest
    sites = [f"site-{number}" for number in range(fewest)]
    if fewest > 1:
        with pytest.raises(ConfigError, match=rf"{name} needs {fewest} sites .* there are {fewest - 1}"):
            build_aggregate(name, model(), sites[1:], attackers)
    aggregate = build_aggregate(name, model(), sites, attackers)
    for site in sites[1:]:
        aggregate.add(site, update(1), 1)
    with pytest.raises(FederationError, match="could be used"):
        aggregate.apply()


def test_an_unknown_rule_is_refused():
    with pytest.raises(ConfigError, match=r"federation.aggregator: bulyan - one of mean, norm_clipping"):
        build_aggregate("bulyan", model(), SITES)
    with pytest.raises(ConfigError, match="tolerated_sites: -1"):
        build_aggregate("median", model(), SITES, -1)
