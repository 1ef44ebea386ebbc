import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from server.guard import Claim, Guard

torch.set_num_threads(1)  # small tensors: threads only cost time

MODEL = {"conv": torch.full((3, 4), 2.0), "bias": torch.zeros(4)}
SHAPES = {name: value.shape for name, value in MODEL.items()}
DECLARED = {"a": 10, "b": 20, "c": 5}
CLAIM = Claim(round=1, steps=30, cases=5)


def update(length=1.0):
    """An update of a given norm."""
    direction = {"conv": torch.full((3, 4), -1.0), "bias": torch.full((4,), 1.0)}
    return {name: value * (length / 4) for name, value in direction.items()}


def guard(**options):
    made = Guard(most_steps=30, declared_cases=DECLARED, **options)
    made.begin(1, MODEL)
    return made


def after_a_round(*lengths, **options):
    made = guard(**options)
    for site, length in zip(DECLARED, lengths, strict=False):
        assert made.admit(site, update(length), CLAIM, SHAPES) is None
    made.begin(2, MODEL)
    return made


def test_good_updates_get_in():
    made = guard()
    assert [made.admit(site, update(), CLAIM, SHAPES) for site in DECLARED] == [None] * 3
    assert made.norms == [dict.fromkeys(DECLARED, pytest.approx(1.0))]


REFUSED = {
    "another round": (update(), Claim(2, 30, 5), "it answered for round 2"),
    "an earlier round": (update(), Claim(0, 30, 5), "it answered for round 0"),
    "too many steps": (update(), Claim(1, 10**12, 5), "it claims 1000000000000 steps, the job has 30"),
    "no step": (update(), Claim(1, 0, 5), "it took no training step"),
    "too many cases": (update(), Claim(1, 30, 11), "it claims 11 training cases, it declared 10"),
    "NaN": (update() | {"bias": torch.tensor([0, math.nan, 0, 0])}, CLAIM, "bias holds NaN or infinity"),
    "infinity": (update() | {"bias": torch.tensor([0, -math.inf, 0, 0])}, CLAIM, "bias holds NaN or infinity"),
    "a shape that would be broadcast": (update() | {"bias": torch.zeros(1)}, CLAIM, "bias has shape (1,), not (4,)"),
    "a missing value": ({"bias": torch.zeros(4)}, CLAIM, "1 missing, 0 unknown"),
    "an unknown value": (update() | {"more": torch.zeros(4)}, CLAIM, "0 missing, 1 unknown"),
    "whole numbers": (update() | {"bias": torch.zeros(4).int()}, CLAIM, "bias is not a tensor of floating-point"),
    "a number": (update() | {"bias": 0.0}, CLAIM, "bias is not a tensor of floating-point"),
    "an absurd length": (update(1e9), CLAIM, "more than 10 times (federation.norm_factor) the model itself"),
    "an overflowing length": ({n: v.double() * 1e307 for n, v in update().items()}, CLAIM, "length inf"),
}


@pytest.mark.promise("answers: lost, late, repeated, of another round, NaN, wrong shape or names, scaled")
@pytest.mark.parametrize(("broken", "claim", "reason"), REFUSED.values(), ids=REFUSED)
def test_a_bad_update_is_left_out_and_leaves_no_trace(broken, claim, reason):
    made = guard()
    assert reason in made.admit("a", broken, claim, SHAPES)
    assert made.norms == []
    assert made.admit("a", update(), CLAIM, SHAPES) is None


def test_a_second_answer_is_left_out():
    made = guard()
    assert made.admit("a", update(), CLAIM, SHAPES) is None
    assert made.admit("a", update(), CLAIM, SHAPES) == "it answered twice"
    assert made.admit("b", update(), CLAIM, SHAPES) is None


def test_a_stranger_is_left_out():
    assert guard().admit("z", update(), CLAIM, SHAPES) == "it did not take part in the preparation"


def test_a_job_without_training_needs_no_step():
    made = Guard(most_steps=0, declared_cases=DECLARED)
    made.begin(1, MODEL)
    assert made.admit("a", update(0.0), Claim(1, 0, 10), SHAPES) is None


def test_a_site_may_be_asked_for_a_part_of_the_model():
    made = guard()
    part = {"bias": SHAPES["bias"]}
    assert made.admit("a", {"bias": torch.ones(4)}, CLAIM, part) is None
    assert "0 missing, 1 unknown" in made.admit("b", update(), CLAIM, part)


# lengths


@pytest.mark.promise("answers: lost, late, repeated, of another round, NaN, wrong shape or names, scaled")
def test_an_update_much_longer_than_its_peers_is_left_out():
    made = after_a_round(1.0, 1.2, 0.8)
    claim = Claim(2, 30, 5)
    reason = made.admit("a", update(100), claim, SHAPES)
    assert reason == ("its update has length 100, more than 10 times (federation.norm_factor) the sites' usual one, 1")
    assert made.admit("b", update(9.9), claim, SHAPES) is None
    assert made.admit("c", update(0.001), claim, SHAPES) is None


def test_one_bad_site_of_three_does_not_make_its_length_the_usual_one():
    made = after_a_round(1.0, 50.0, 0.8)
    assert made.admit("b", update(50), Claim(2, 30, 5), SHAPES) is not None
    assert made.admit("a", update(1), Claim(2, 30, 5), SHAPES) is None


def test_two_sites_need_two_rounds_before_their_lengths_mean_something():
    made = after_a_round(1.0, 1.0)
    assert made.admit("a", update(11), Claim(2, 30, 5), SHAPES) is None
    assert made.admit("b", update(1), Claim(2, 30, 5), SHAPES) is None
    made.begin(3, MODEL)
    assert made.admit("a", update(11), Claim(3, 30, 5), SHAPES) is not None


def test_the_first_round_bounds_an_update_by_the_model():
    made = guard()
    length = math.sqrt(12 * 4) + 1
    assert made.admit("a", update(9.9 * length), CLAIM, SHAPES) is None
    assert "the model itself, 7.93" in made.admit("b", update(10.1 * length), CLAIM, SHAPES)


def test_a_model_of_zeros_may_be_trained():
    made = Guard(30, DECLARED)
    made.begin(1, {name: torch.zeros_like(value) for name, value in MODEL.items()})
    assert made.admit("a", update(9), CLAIM, SHAPES) is None


def test_a_factor_of_0_compares_no_lengths():
    made = after_a_round(1.0, 1.0, 1.0, factor=0)
    assert made.admit("a", update(1e20), Claim(2, 30, 5), SHAPES) is None


def test_lengths_may_shrink_over_many_rounds():
    made = guard()
    for number in range(1, 60):
        made.begin(number, MODEL)
        for site in DECLARED:
            assert made.admit(site, update(0.9**number), Claim(number, 30, 5), SHAPES) is None
    assert len(made.norms) == 5


def test_a_falling_learning_rate_does_not_let_a_scaled_update_in():
    made = guard()
    rounds = 10
    for number in range(1, rounds + 1):
        # cosine schedule: an update is as long as its round's mean learning rate
        times = [(number - 1 + step / 20) / rounds for step in range(20)]
        length = sum(1 + math.cos(math.pi * time) for time in times) / 20
        made.begin(number, MODEL)
        claim = Claim(number, 30, 5)
        assert made.admit("a", update(100 * length), claim, SHAPES) is not None, number
        for site in DECLARED:
            assert made.admit(site, update(length), claim, SHAPES) is None


def test_a_round_that_nobody_finished_is_not_remembered():
    made = after_a_round(1.0, 1.0, 1.0)
    made.begin(3, MODEL)
    made.begin(4, MODEL)
    assert len(made.norms) == 1
    assert made.admit("a", update(100), Claim(4, 30, 5), SHAPES) is not None


def test_a_server_that_was_started_again_decides_the_same():
    before = guard()
    for site, length in (("a", 1.0), ("b", 2.0), ("c", 3.0)):
        before.admit(site, update(length), CLAIM, SHAPES)
    after = Guard(30, DECLARED, norms=before.norms)
    for made in (before, after):
        made.begin(2, MODEL)
    for length in (19.0, 21.0):
        answers = {made.admit("a", update(length), Claim(2, 30, 5), SHAPES) for made in (before, after)}
        assert len(answers) == 1 and (answers == {None}) == (length < 20)
    assert before.norms == after.norms


@settings(max_examples=50, deadline=None)
@given(st.permutations(["a", "b", "c"]), st.lists(st.floats(0.01, 1000), min_size=6, max_size=6))
def test_who_answers_first_does_not_decide_who_is_left_out(order, lengths):
    def decide(sites):
        made = guard()
        found = {}
        for number in (1, 2):
            made.begin(number, MODEL)
            for site in sites:
                length = lengths[3 * (number - 1) + "abc".index(site)]
                found[number, site] = made.admit(site, update(length), Claim(number, 30, 5), SHAPES)
        return found

    assert decide(order) == decide("abc")
