import gc
import json
import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fl_app.config_file import parse_job
from fl_app.errors import FederationError
from fl_app.messages import SiteReady, Spread, TestReport, TrainReport, Validation
from fl_app.result import read_result
from server.aggregation import WeightedMean
from server.exchange import Exchange
from server.record import Record

torch.set_num_threads(1)  # small tensors: threads only cost time


def model(seed=0):
    random = torch.Generator().manual_seed(seed)
    return {
        "conv.weight": torch.randn(4, 3, 3, generator=random),
        "conv.bias": torch.randn(4, generator=random),
        "scale": torch.randn((), generator=random),
        "none": torch.zeros(0, 3),
    }


def update(seed, scale=0.1):
    return {name: value * scale for name, value in model(seed + 1).items()}


def mean_of(updates, weights, like=None):
    mean = WeightedMean(like or model())
    for each, weight in zip(updates, weights, strict=True):
        mean.add(each, weight)
    return mean.apply()


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


# the weighted mean


@pytest.mark.parametrize("scale", [1e-6, 1e-3, 1.0, 100.0])
@pytest.mark.parametrize("weights", [[1], [1, 1], [3, 50, 7], [1, 1000, 100_000], list(range(1, 41))])
def test_the_mean_equals_one_computed_in_double_precision(weights, scale):
    updates = [update(seed, scale) for seed in range(len(weights))]
    after = mean_of(updates, weights)
    for name, before in model().items():
        terms = [each[name].double() * weight for each, weight in zip(updates, weights, strict=True)]
        wanted = before.double() + torch.stack(terms).sum(0) / sum(weights)
        assert after[name].dtype == torch.float32 and after[name].shape == before.shape
        error = (after[name].double() - wanted).abs()
        assert bool((error <= 1e-7 * wanted.abs().clamp(min=1)).all())


def test_the_mean_of_equal_updates_is_the_update():
    like = {"w": torch.zeros(1000)}
    change = {"w": torch.randn(1000, generator=torch.Generator().manual_seed(1)) * 0.01}
    after = mean_of([change] * 7, [1, 2, 3, 4, 5, 6, 7], like)
    torch.testing.assert_close(after["w"], change["w"], rtol=0, atol=2**-32)


def test_updates_of_nothing_leave_the_model_as_it_is():
    zeros = {name: torch.zeros_like(value) for name, value in model().items()}
    assert same(mean_of([zeros, zeros], [3, 5]), model())


def test_a_site_with_twice_the_weight_counts_like_two_sites():
    first, second = update(1), update(2)
    assert same(mean_of([first, second], [2, 1]), mean_of([first, first, second], [1, 1, 1]))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_updates_of_another_floating_point_type_are_added(dtype):
    after = mean_of([{"w": torch.tensor([0.5, -0.25], dtype=dtype)}], [3], {"w": torch.tensor([1.0, 1.0])})
    assert after["w"].tolist() == [1.5, 0.75] and after["w"].dtype == torch.float32


def test_updates_in_another_memory_order_are_added_by_their_values():
    like = {"w": torch.zeros(2, 3, 4, 5, 6)}
    change = torch.randn(2, 3, 4, 5, 6)
    last = change.to(memory_format=torch.channels_last_3d)
    assert same(mean_of([{"w": last}], [1], like), mean_of([{"w": change}], [1], like))


magnitudes = st.floats(-40, 23, allow_nan=False).map(lambda power: 2.0**power)
signed = st.builds(lambda size, sign: size * sign, magnitudes, st.sampled_from([-1.0, 1.0])) | st.just(0.0)


@given(
    st.lists(st.tuples(st.lists(signed, min_size=3, max_size=3), st.integers(1, 2)), min_size=1, max_size=8),
    st.randoms(),
)
def test_the_mean_is_the_same_to_the_bit_in_any_order_of_arrival(answers, chance):
    like = {"w": torch.tensor([1.0, -1e-3, 1e6])}

    def mean(each):
        return mean_of([{"w": torch.tensor(values)} for values, _ in each], [weight for _, weight in each], like)["w"]

    first = mean(answers)
    for _ in range(3):
        assert torch.equal(mean(chance.sample(answers, len(answers))), first)
    total = sum(weight for _, weight in answers)
    for place, before in enumerate(like["w"].tolist()):
        terms = [Fraction(torch.tensor(values[place]).item()) * weight for values, weight in answers]
        wanted = float(Fraction(before) + sum(terms) / total)
        assert first[place].item() == pytest.approx(wanted, rel=1e-7, abs=1e-9)


@given(st.permutations(range(6)))
def test_real_updates_give_the_same_model_in_any_order(order):
    updates, weights = [update(seed, 10.0 ** (seed - 4)) for seed in range(6)], [1, 90, 7, 7, 1000, 3]
    ordered = mean_of([updates[site] for site in order], [weights[site] for site in order])
    assert same(ordered, mean_of(updates, weights))


def living_bytes(shape):
    """Memory of all tensors of a shape that anything still refers to."""
    gc.collect()
    tensors = [each for each in gc.get_objects() if type(each) is torch.Tensor and each.shape == shape]
    return sum(each.untyped_storage().nbytes() for each in tensors)


def test_memory_is_that_of_one_model_however_many_sites_answer():
    like = {"w": torch.zeros(100_003)}
    before = living_bytes((100_003,))
    mean = WeightedMean(like)
    for number in range(20):
        mean.add({"w": torch.full((100_003,), number / 100)}, 1)
    held = living_bytes((100_003,)) - before
    assert before == 100_003 * 4
    assert held == 100_003 * 8  # a 64-bit sum for each value, and nothing else


def test_an_update_that_changes_later_does_not_change_the_mean():
    change = update(1)
    mean = WeightedMean(model())
    mean.add(change, 1)
    before = mean.apply()
    for value in change.values():
        value.fill_(99)
    assert same(mean.apply(), before)
    assert same(mean.apply(), mean_of([update(1)], [1]))


def test_the_current_model_is_not_changed():
    like = model()
    mean_of([update(1)], [1], like)
    assert same(like, model())


def test_without_any_update_there_is_no_new_model():
    with pytest.raises(FederationError, match="no site's update could be used"):
        WeightedMean(model()).apply()


# refusals


def with_value(name, value):
    return update(5) | {name: value}


def spoiled(number):
    values = update(5)["conv.weight"].clone()
    values[1, 2, 0] = number
    return with_value("conv.weight", values)


REFUSED = {
    "NaN": (spoiled(math.nan), 1, "conv.weight holds NaN or infinity"),
    "infinity": (spoiled(math.inf), 1, "conv.weight holds NaN or infinity"),
    "minus infinity": (spoiled(-math.inf), 1, "conv.weight holds NaN or infinity"),
    "NaN in half": (with_value("scale", torch.tensor(math.nan).half()), 1, "scale holds NaN"),
    "another shape": (with_value("conv.weight", torch.zeros(3, 4, 3)), 1, "has shape (3, 4, 3), not (4, 3, 3)"),
    "a broadcastable shape": (with_value("conv.bias", torch.zeros(1)), 1, "has shape (1,), not (4,)"),
    "a scalar for a vector": (with_value("conv.bias", torch.zeros(())), 1, "has shape (), not (4,)"),
    "a vector for a scalar": (with_value("scale", torch.zeros(1)), 1, "has shape (1,), not ()"),
    "more dimensions": (with_value("conv.bias", torch.zeros(1, 4)), 1, "has shape (1, 4), not (4,)"),
    "a missing value": ({"scale": torch.zeros(())}, 1, "3 missing, 0 unknown"),
    "nothing": ({}, 1, "4 missing, 0 unknown"),
    "an unknown value": (with_value("more", torch.zeros(3)), 1, "0 missing, 1 unknown"),
    "whole numbers": (with_value("conv.bias", torch.zeros(4, dtype=torch.int64)), 1, "not a tensor of floating"),
    "truth values": (with_value("conv.bias", torch.zeros(4, dtype=torch.bool)), 1, "not a tensor of floating"),
    "complex numbers": (with_value("conv.bias", torch.zeros(4, dtype=torch.complex64)), 1, "not a tensor of floating"),
    "a tiny type": (with_value("conv.bias", torch.zeros(4).to(torch.float8_e4m3fn)), 1, "not a tensor of floating"),
    "a sparse tensor": (with_value("conv.bias", torch.zeros(4).to_sparse()), 1, "not a tensor of floating"),
    "a list": (with_value("conv.bias", [0.0] * 4), 1, "not a tensor of floating"),
    "an array": (with_value("conv.bias", torch.zeros(4).numpy()), 1, "not a tensor of floating"),
    "none": (with_value("conv.bias", None), 1, "not a tensor of floating"),
    "no weight": (update(5), 0, "its weight is 0"),
    "a negative weight": (update(5), -3, "its weight is -3"),
    "an absurd change": (spoiled(1e30), 1, "conv.weight has changed by 1e+30, more than any training does"),
    "an absurd change downwards": (spoiled(-3e38), 1, "has changed by 3e+38"),
    "an absurd product": (spoiled(1000.0), 10**6, "has changed by 1e+03"),
    "an absurd weight": (update(5), 10**30, "more than any training does"),
}


@pytest.mark.parametrize(("broken", "weight", "reason"), REFUSED.values(), ids=REFUSED)
def test_a_refused_update_says_why_and_leaves_the_sums_untouched_to_the_bit(broken, weight, reason):
    mean = WeightedMean(model())
    mean.add(update(1), 3)
    before = mean.apply()
    assert reason in mean.refusal(broken, weight)
    with pytest.raises(FederationError) as caught:
        mean.add(broken, weight)
    assert reason in str(caught.value)
    assert set(mean.weights.values()) == {3}
    assert same(mean.apply(), before)
    mean.add(update(2), 4)
    assert same(mean.apply(), mean_of([update(1), update(2)], [3, 4]))


def test_a_good_update_is_not_refused_and_asking_adds_nothing():
    mean = WeightedMean(model())
    assert mean.refusal(update(1), 1) is None
    assert set(mean.weights.values()) == {0}


# weights of single values: sites that train parts of the model


def parts(seed, *names):
    return {name: value for name, value in update(seed).items() if name in names}


def test_each_value_is_averaged_over_the_sites_that_trained_it():
    first, second = parts(1, "conv.weight", "scale"), parts(2, "conv.weight", "conv.bias")
    after = mean_of([first, second], [{"conv.weight": 3, "scale": 5}, {"conv.weight": 1, "conv.bias": 7}])
    before = model()
    both = (first["conv.weight"] * 3 + second["conv.weight"]) / 4
    torch.testing.assert_close(after["conv.weight"], before["conv.weight"] + both)
    torch.testing.assert_close(after["scale"], before["scale"] + first["scale"])
    torch.testing.assert_close(after["conv.bias"], before["conv.bias"] + second["conv.bias"])


def test_a_value_that_no_site_trained_stays_as_it_is():
    after = mean_of([parts(1, "scale")], [{"scale": 2}])
    assert same({**after, "scale": model()["scale"]}, model())
    assert not torch.equal(after["scale"], model()["scale"])


def test_a_weight_for_each_value_is_the_same_as_one_for_all():
    assert same(
        mean_of([update(1), update(2)], [dict.fromkeys(model(), 3), 4]), mean_of([update(1), update(2)], [3, 4])
    )


@given(st.permutations(range(4)))
def test_parts_of_the_model_give_the_same_model_in_any_order(order):
    names = [("scale",), ("scale", "conv.bias"), tuple(model()), ("conv.weight", "scale")]
    updates = [parts(seed, *held) for seed, held in enumerate(names)]
    weights = [{name: 10**site + len(name) for name in held} for site, held in enumerate(names)]
    ordered = mean_of([updates[site] for site in order], [weights[site] for site in order])
    assert same(ordered, mean_of(updates, weights))


@pytest.mark.parametrize(
    ("names", "weight", "reason"),
    [
        (("scale",), {"scale": 1, "conv.bias": 1}, "1 missing, 0 unknown"),
        (("scale", "conv.bias"), {"scale": 1}, "0 missing, 1 unknown"),
        (("scale",), {"scale": 1, "other": 1}, None),
        (("scale",), {"scale": 0}, "the weight of scale is 0"),
        (("scale",), {"scale": -2}, "the weight of scale is -2"),
        (("scale",), {"scale": 10**30}, "more than any training does"),
        (("scale",), 1, "3 missing, 0 unknown"),
    ],
)
def test_weights_that_do_not_fit_the_update_are_refused(names, weight, reason):
    mean = WeightedMean(model())
    mean.add(update(1), 3)
    before = mean.apply()
    found = mean.refusal(parts(2, *names), weight)
    assert reason in found if reason else found is None
    if reason:
        with pytest.raises(FederationError):
            mean.add(parts(2, *names), weight)
        assert same(mean.apply(), before)


# when an exchange is over


class Clock:
    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


def exchange(clock, quorum=2, sites=("a", "b", "c")):
    return Exchange(sites, quorum, time_limit=60, grace=5, clock=clock)


def test_it_is_over_at_once_when_all_have_answered(clock):
    asked = exchange(clock, quorum=3)
    for site in ("b", "a"):
        asked.accept(site)
        assert not asked.is_over()
    asked.accept("c")
    assert asked.is_over() and asked.reached_quorum
    asked.close()
    assert asked.left_out == {} and asked.good == ["b", "a", "c"]


def test_an_answer_that_cannot_be_used_is_an_answer_too(clock):
    asked = exchange(clock)
    asked.accept("a")
    asked.leave_out("b", "it holds NaN")
    asked.accept("c")
    assert asked.is_over() and asked.reached_quorum
    asked.close()
    assert asked.left_out == {"b": "it holds NaN"}


def test_after_the_quorum_it_waits_for_the_grace_time_and_no_longer(clock):
    asked = exchange(clock)
    clock.now += 50
    asked.accept("a")
    clock.now += 1
    asked.accept("b")
    assert asked.reached_quorum and not asked.is_over()
    clock.now += 4.99
    assert not asked.is_over()
    clock.now += 0.01
    assert asked.is_over()
    asked.close()
    assert asked.left_out == {"c": "it did not answer within 5 s after the quorum (federation.grace_s)"}


def test_the_grace_time_counts_from_the_quorum_not_from_later_answers(clock):
    asked = exchange(clock, quorum=1)
    asked.accept("a")
    clock.now += 4
    asked.accept("b")
    clock.now += 1
    assert asked.is_over()


def test_the_time_limit_ends_it_without_a_quorum(clock):
    asked = exchange(clock)
    asked.accept("b")
    clock.now += 59.99
    assert not asked.is_over()
    clock.now += 0.01
    assert asked.is_over() and not asked.reached_quorum
    asked.close()
    reason = "it did not answer within 60 s (federation.round_time_limit_s)"
    assert asked.left_out == {"a": reason, "c": reason}


def test_the_time_limit_ends_it_during_the_grace_time(clock):
    asked = exchange(clock)
    clock.now += 58
    asked.accept("a")
    asked.accept("b")
    clock.now += 2
    assert asked.is_over() and asked.reached_quorum
    asked.close()
    assert "federation.round_time_limit_s" in asked.left_out["c"]


def test_it_ends_at_once_when_the_quorum_can_no_longer_be_reached(clock):
    asked = exchange(clock)
    asked.leave_out("a", "its data cannot be used")
    assert not asked.is_over()
    asked.leave_out("c", "it ran out of memory")
    assert asked.is_over() and not asked.reached_quorum
    asked.close()
    assert asked.left_out == {
        "a": "its data cannot be used",
        "c": "it ran out of memory",
        "b": "it had not answered when the quorum could no longer be reached",
    }


def test_a_quorum_larger_than_the_federation_ends_at_once(clock):
    asked = exchange(clock, quorum=4)
    assert asked.is_over() and not asked.reached_quorum


def test_nobody_asked_is_over_at_once(clock):
    assert exchange(clock, quorum=1, sites=()).is_over()


def test_it_knows_for_whom_it_waits_in_the_order_they_were_asked(clock):
    asked = exchange(clock)
    assert asked.waiting() == ["a", "b", "c"]
    asked.accept("b")
    assert asked.waiting() == ["a", "c"]
    asked.leave_out("a", "x")
    assert asked.waiting() == ["c"]


def test_who_answers_after_the_end_stays_left_out(clock):
    asked = exchange(clock, quorum=2)
    asked.accept("a")
    clock.now += 60
    assert not asked.closed
    asked.close()
    asked.accept("b")
    asked.leave_out("c", "another reason")
    assert asked.closed and asked.good == ["a"] and not asked.reached_quorum
    assert set(asked.left_out) == {"b", "c"}
    assert all("round_time_limit_s" in reason for reason in asked.left_out.values())


def test_a_site_that_answers_twice_counts_once(clock):
    asked = exchange(clock)
    asked.accept("a")
    asked.accept("a")
    asked.leave_out("a", "x")
    assert not asked.reached_quorum and asked.good == ["a"] and asked.left_out == {}


def test_a_stranger_does_not_count(clock):
    asked = exchange(clock)
    asked.accept("a")
    asked.accept("z")
    assert not asked.reached_quorum


# what is written down


def ready(**more):
    values = {
        "training_cases": 3,
        "validation_cases": 1,
        "test_cases": 1,
        "warnings": 2,
        "device": "cpu",
        "search": None,
        "restored": None,
        "saving": {},
    }
    return SiteReady.model_validate(
        values | {"precision": "bf16", "versions": {"torch": "2"}, "seconds": 1.23456} | more
    )


def scored(cases, **metrics):
    return Validation(cases=cases, metrics=metrics, seconds=0.5)


def trained(number, validation, loss=0.5):
    return TrainReport(
        round=number,
        loss=loss,
        steps=10,
        training_cases=3,
        training_seconds=2.0,
        memory_bytes=5 * 10**8,
        received=validation,
        touched=None,
    )


def scores_of(mean, cases, std=0.1):
    spread = Spread(mean=mean, std=None if mean is None else std, cases=cases)
    return TestReport(dice={"spleen": spread}, surface_dice={"spleen": spread}, seconds=1)


@pytest.fixture
def record(tmp_path):
    job = parse_job("seed: 7\nfederation: {rounds: 2}")
    return Record(tmp_path / "run" / "result.json", job)


@pytest.fixture
def written(tmp_path):
    return lambda: read_result(tmp_path / "run" / "result.json")


def test_the_file_is_valid_and_complete_after_each_event(record, written):
    record.save()
    assert (written().status, written().seed, written().rounds_asked) == ("running", 7, 2)
    record.site_ready("a", ready())
    assert (written().sites["a"].data_warnings, written().sites["a"].preparation_seconds) == (2, 1.235)
    record.rounds.round_started(1)
    assert written().rounds[0].number == 1 and not written().rounds[0].sites
    record.rounds.site_trained("a", trained(1, scored(1, val_dice=0.1)), received=100, sent=90)
    entry = written().rounds[0].sites["a"]
    assert (entry.loss, entry.steps, entry.bytes_received, entry.bytes_sent) == (0.5, 10, 100, 90)
    record.rounds.model_validated(0, {"a": scored(1, val_dice=0.1)})
    assert written().initial_dice == 0.1
    record.rounds.round_finished(3.0, {"a": 3}, {"b": "late"})
    assert (written().rounds[0].seconds, written().rounds[0].left_out) == (3.0, {"b": "late"})
    record.rounds.model_validated(1, {"a": scored(1, val_dice=0.6)})
    assert written().rounds[0].dice == 0.6
    record.tested(1, 0.6, {"a": scores_of(0.7, 1)}, {"b": "late"})
    assert (written().final.mean_dice, written().final.round, written().final.left_out) == (0.7, 1, {"b": "late"})
    record.finished()
    assert written().status == "finished" and written() == record.result


def test_a_failed_run_says_why(record, written):
    record.rounds.round_started(1)
    record.failed("1 of 2 sites could take part")
    assert (written().status, written().error) == ("failed", "1 of 2 sites could take part")


def test_the_whole_job_stands_in_the_result(record, written):
    record.save()
    assert parse_job(json.dumps(written().config)) == parse_job("seed: 7\nfederation: {rounds: 2}")


def test_scores_that_arrive_with_the_next_round_belong_to_the_round_before(record, written):
    first, second = {"a": scored(1, val_dice=0.2)}, {"a": scored(1, val_dice=0.6)}
    record.rounds.round_started(1)
    record.rounds.site_trained("a", trained(1, first["a"], 0.9), 1, 1)
    record.rounds.model_validated(0, first)
    record.rounds.round_started(2)
    record.rounds.site_trained("a", trained(2, second["a"], 0.4), 1, 1)
    record.rounds.model_validated(1, second)
    rounds = written().rounds
    assert written().initial_dice == 0.2
    assert (rounds[0].dice, rounds[0].sites["a"].dice, rounds[0].sites["a"].loss) == (0.6, 0.6, 0.9)
    assert (rounds[1].dice, rounds[1].sites["a"].dice, rounds[1].sites["a"].loss) == (None, None, 0.4)


def test_the_best_metric_is_averaged_by_validation_cases(record, written):
    record.rounds.round_started(1)
    value = record.rounds.model_validated(1, {"a": scored(1, val_dice=0.2), "b": scored(3, val_dice=0.6)})
    assert value == pytest.approx(0.5) == written().rounds[0].dice
    assert written().rounds[0].sites["b"].validation_cases == 3


def test_the_best_metric_is_the_one_that_the_job_names(tmp_path):
    job = parse_job("data: {labels: {spleen: 1, liver: 2}}\nfederation: {best_metric: val_dice_liver}")
    value = Record(tmp_path / "r", job).rounds.model_validated(0, {"a": scored(2, val_dice=0.9, val_dice_liver=0.3)})
    assert value == 0.3


def test_sites_without_the_organ_do_not_count_in_its_mean(record, written):
    record.rounds.round_started(1)
    scores = {"a": scored(5, val_dice=None), "b": scored(1, val_dice=0.4), "c": scored(0, val_dice=None)}
    assert record.rounds.model_validated(1, scores) == pytest.approx(0.4)
    assert written().rounds[0].sites["a"].dice is None


def test_where_no_site_has_the_organ_there_is_no_value(record, written):
    record.rounds.round_started(1)
    assert record.rounds.model_validated(1, {"a": scored(5, val_dice=None)}) is None
    assert record.rounds.model_validated(0, {}) is None
    assert (written().rounds[0].dice, written().initial_dice) == (None, None)


def test_the_shares_of_a_round_add_up_to_one(record, written):
    record.rounds.round_started(1)
    for site in "abc":
        record.rounds.site_trained(site, trained(1, scored(1, val_dice=0.1)), 1, 1)
    record.rounds.round_finished(1.0, {"a": 1, "b": 2, "c": 5}, {})
    assert [site.weight for site in written().rounds[0].sites.values()] == [0.125, 0.25, 0.625]


def test_a_site_that_was_left_out_of_training_may_still_have_scored_the_model(record, written):
    record.rounds.round_started(1)
    record.rounds.model_validated(1, {"late": scored(2, val_dice=0.5)})
    assert (written().rounds[0].sites["late"].steps, written().rounds[0].sites["late"].dice) == (0, 0.5)


def test_final_means_count_cases_and_sites(record, written):
    record.tested(2, 0.9, {"b": scores_of(0.9, 1), "a": scores_of(0.5, 3), "c": scores_of(None, 0)}, {})
    final = written().final
    assert final.mean_dice == pytest.approx(0.6) == final.mean_surface_dice
    assert final.mean_dice_over_sites == pytest.approx(0.7)
    assert list(final.sites) == ["a", "b", "c"] and final.sites["c"].dice is None


def test_no_temporary_file_remains(record, tmp_path):
    for number in range(3):
        record.rounds.round_started(number + 1)
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["result.json"]


def test_a_patient_exchange_hears_every_reason_before_it_ends():
    exchange = Exchange(["north", "south", "west"], 3, time_limit=60, grace=5, patient=True, clock=lambda: 0.0)
    exchange.leave_out("north", "its data cannot be used")
    assert not exchange.is_over(), "the quorum is out of reach, but south and west may have something to say"
    exchange.leave_out("south", "it ran out of memory")
    exchange.accept("west")
    assert exchange.is_over() and not exchange.reached_quorum
