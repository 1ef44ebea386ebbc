import hashlib
import itertools
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fl_app.data.cases import Case
from fl_app.data.splits import Split, assign_to_sites, split_cases
from fl_app.errors import DataError, UsageError

PARTS = ("training", "validation", "test")
NAMES = st.lists(st.text(min_size=1, max_size=8), min_size=3, max_size=40, unique=True)
SEEDS = st.integers(-5, 2**40)
FRACTIONS = st.tuples(st.floats(0.02, 0.48), st.floats(0.02, 0.48))


def numbered(count):
    return [f"case_{number:03}" for number in range(count)]


def part_of(split):
    return {name: part for part in PARTS for name in getattr(split, part)}


def places(names, seed):
    """The documented rule, written once more."""
    return [int.from_bytes(hashlib.sha256(f"{seed}/{n}".encode()).digest()[:8], "big") / 2**64 for n in names]


def a_part_is_empty(names, seed, validation, test):
    natural = [0 if u < test else 1 if u < test + validation else 2 for u in places(names, seed)]
    return len(set(natural)) < 3


# ---- splitting one site


@given(NAMES, SEEDS, FRACTIONS)
def test_every_case_is_in_one_part_and_no_part_is_empty(names, seed, fractions):
    split = split_cases(names, seed, *fractions)
    everything = [*split.training, *split.validation, *split.test]
    assert sorted(everything) == sorted(names)
    assert split.training and split.validation and split.test


@given(NAMES, SEEDS, FRACTIONS, st.randoms())
def test_order_does_not_matter(names, seed, fractions, random):
    mixed = random.sample(names, len(names))
    assert split_cases(mixed, seed, *fractions) == split_cases(names, seed, *fractions)


@settings(max_examples=200)
@given(NAMES, NAMES, SEEDS, FRACTIONS)
def test_adding_cases_moves_none_unless_a_part_was_empty(names, more, seed, fractions):
    larger = sorted({*names, *more})
    if a_part_is_empty(names, seed, *fractions) or a_part_is_empty(larger, seed, *fractions):
        return
    before, after = (part_of(split_cases(some, seed, *fractions)) for some in (names, larger))
    assert all(after[name] == before[name] for name in names)


@pytest.mark.parametrize("seed", range(5))
def test_a_growing_site_keeps_every_case_in_its_part(seed):
    steps = [part_of(split_cases(numbered(count), seed, 0.2, 0.2)) for count in range(30, 120)]
    for before, after in itertools.pairwise(steps):
        assert before.items() <= after.items()


def test_moves_are_rare_even_at_small_sites():
    moves = additions = 0
    for seed in range(200):
        for count in range(5, 15):
            before = part_of(split_cases(numbered(count), seed, 0.2, 0.2))
            after = part_of(split_cases(numbered(count + 1), seed, 0.2, 0.2))
            moves += sum(after[name] != before[name] for name in before)
            additions += 1
    assert moves / additions < 0.2


@pytest.mark.parametrize("count", [20, 41, 100, 400])
def test_counts_are_near_the_fractions(count):
    for seed in range(20):
        split = split_cases(numbered(count), seed, 0.2, 0.15)
        for part, fraction in (("training", 0.65), ("validation", 0.2), ("test", 0.15)):
            deviation = math.sqrt(count * fraction * (1 - fraction))
            assert abs(len(getattr(split, part)) - count * fraction) < 4 * deviation


def test_counts_are_right_on_average():
    sizes = [len(split_cases(numbered(20), seed, 0.2, 0.2).test) for seed in range(300)]
    assert sum(sizes) / len(sizes) == pytest.approx(4, abs=0.4)


def test_seeds_give_different_splits():
    assert len({split_cases(numbered(30), seed, 0.2, 0.2) for seed in range(10)}) == 10


def test_the_split_is_the_same_everywhere():
    """Pinned: another version that splits otherwise would train on what was tested."""
    split = split_cases(numbered(9), 0, 0.2, 0.2)
    assert split == Split(
        training=("case_000", "case_001", "case_002", "case_003", "case_004", "case_006", "case_007"),
        validation=("case_005",),
        test=("case_008",),
    )


@pytest.mark.parametrize("count", [0, 1, 2])
def test_too_few_cases(count):
    with pytest.raises(DataError, match=rf"{count} case.*at least one.*`data\.reuse_cases: true`"):
        split_cases(numbered(count), 0, 0.2, 0.2)


def test_a_name_twice():
    with pytest.raises(DataError, match=r"more than one of b\."):
        split_cases(["a", "b", "b", "c"], 0, 0.2, 0.2)


@pytest.mark.parametrize(("validation", "test"), [(0, 0.2), (0.2, 0), (0.5, 0.5), (-1, 0.2), (math.nan, 0.1)])
def test_fractions_that_leave_a_part_without_room(validation, test):
    with pytest.raises(UsageError, match="above 0 and together below 1"):
        split_cases(numbered(9), 0, validation, test)


def test_reused():
    assert Split.reused(["b", "a"]) == Split(("a", "b"), ("a", "b"), ("a", "b"))


# ---- sharing out a cohort


@pytest.fixture
def cohort(tmp_path):
    """30 cases; case n's image has n bytes."""
    cases = []
    for size, name in enumerate(reversed(numbered(30))):
        image = tmp_path / f"{name}.nii"
        image.write_bytes(b"." * size)
        cases.append(Case(name, image, None))
    return cases


@pytest.mark.parametrize(
    "how", ["iid", "by-size", "dirichlet:0.5", "dirichlet:100", "dirichlet:1e-300", "dirichlet:1e300"]
)
@pytest.mark.parametrize("sites", [1, 2, 4, 7, 10])
@pytest.mark.parametrize("seed", [0, -3])
def test_each_case_goes_to_one_site_whatever_the_order(cohort, how, sites, seed):
    assigned = assign_to_sites(cohort, sites, how, seed)
    assert sorted(case.name for site in assigned for case in site) == numbered(30)
    assert [len(site) for site in assigned if len(site) < 3] == []
    assert assign_to_sites(cohort[::-1], sites, how, seed) == assigned


def test_iid_has_equal_counts_and_depends_on_the_seed(cohort):
    assigned = assign_to_sites(cohort, 4, "iid", 0)
    assert sorted(len(site) for site in assigned) == [7, 7, 8, 8]
    assert assign_to_sites(cohort, 4, "iid", 1) != assigned


def test_iid_sites_can_still_be_split(cohort):
    """The order among sites is not the order within a site: no site is all training or all test."""
    sizes = [
        len(split_cases([case.name for case in site], seed, 0.3, 0.3).training)
        for seed in range(40)
        for site in assign_to_sites(cohort, 3, "iid", seed)
    ]
    assert sum(sizes) / len(sizes) == pytest.approx(4, abs=0.5)


def test_by_size_goes_from_small_to_large(cohort):
    assigned = assign_to_sites(cohort, 3, "by-size", 0)
    sizes = [[case.image.stat().st_size for case in site] for site in assigned]
    assert sizes == [list(range(0, 10)), list(range(10, 20)), list(range(20, 30))]


def test_dirichlet_is_more_unequal_for_small_alpha(cohort):
    def spread(how):
        counts = [[len(site) for site in assign_to_sites(cohort, 4, how, seed)] for seed in range(30)]
        return sum(max(count) - min(count) for count in counts)

    assert spread("dirichlet:0.2") > spread("dirichlet:2") > spread("dirichlet:500")


def test_dirichlet_with_few_cases_leaves_no_site_empty(cohort):
    for seed in range(20):
        assert min(len(site) for site in assign_to_sites(cohort[:7], 4, "dirichlet:0.1", seed)) >= 1


def test_same_gives_every_site_every_case(cohort):
    assigned = assign_to_sites(cohort, 3, "same", 0)
    assert [[case.name for case in site] for site in assigned] == [numbered(30)] * 3


@pytest.mark.parametrize(
    ("how", "message"),
    [("idd", 'did you mean "iid"'), ("bysize", 'did you mean "by-size"'), ("Dirichlet:1", 'did you mean "dirichlet"'),
     ("", "allowed are"), ("xyz", "allowed are"), ("iid:3", "takes no number"), ("dirichlet", "needs a finite number"),
     ("dirichlet:0", "above 0"), ("dirichlet:-1", "above 0"), ("dirichlet:nan", "above 0"), ("dirichlet:x", "above 0"),
     ("dirichlet:inf", "above 0")],
)  # fmt: skip
def test_an_unknown_way_says_what_is_allowed(cohort, how, message):
    with pytest.raises(UsageError, match=message) as error:
        assign_to_sites(cohort, 2, how, 0)
    assert "by-size" in str(error.value)


def test_too_few_cases_or_sites(cohort):
    with pytest.raises(DataError, match="2 cases are too few for 3 sites"):
        assign_to_sites(cohort[:2], 3, "iid", 0)
    with pytest.raises(DataError, match="no cases"):
        assign_to_sites([], 3, "same", 0)
    with pytest.raises(UsageError, match="at least 1 site, not 0"):
        assign_to_sites(cohort, 0, "iid", 0)


def test_an_image_that_is_gone(cohort):
    cohort[3].image.unlink()
    with pytest.raises(DataError, match="cannot be read"):
        assign_to_sites(cohort, 2, "by-size", 0)
