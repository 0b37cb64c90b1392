import math
from fractions import Fraction

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from ecoflap.ops.water_filling import proportional, water_fill

from . import golden, reference

SIZES = st.lists(st.integers(1, 10**11), min_size=1, max_size=12)


def floors(sizes: list[int], percent: int) -> list[int]:
    return [-(-size * (100 - percent) // 100) for size in sizes]


@settings(max_examples=300, deadline=None, derandomize=True)
@given(SIZES, st.integers(0, 100), st.data())
def test_total_is_exact_and_no_group_leaves_its_bounds(
    sizes: list[int], percent: int, data: st.DataObject
) -> None:
    score = st.one_of(st.just(0.0), st.floats(1e-300, 1e300), st.floats(0.1, 10))
    scores = data.draw(st.lists(score, min_size=len(sizes), max_size=len(sizes)).filter(any))
    least = floors(sizes, percent)
    total = data.draw(st.integers(sum(least), sum(sizes)))
    keeps = water_fill(sizes, scores, total, percent / 100)
    assert sum(keeps) == total
    assert all(isinstance(keep, int) for keep in keeps)
    assert all(low <= keep <= size for low, keep, size in zip(least, keeps, sizes, strict=True))
    if total < sum(size if score else low for size, low, score in zip(sizes, least, scores, strict=True)):
        assert all(keep == low for keep, low, score in zip(keeps, least, scores, strict=True) if not score)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(SIZES, st.sampled_from([0.5, 0.6, 0.8, 0.9, 1.0]), st.data())
def test_equals_bisection(sizes: list[int], cap: float, data: st.DataObject) -> None:
    scores = data.draw(st.lists(st.floats(0.01, 100), min_size=len(sizes), max_size=len(sizes)))
    least = sum(floors(sizes, round(100 * cap)))
    total = data.draw(st.integers(least, sum(sizes)))
    expected = reference.water_level(sizes, scores, total, cap)
    tolerance = 2 + len(sizes) + 1e-12 * sum(sizes)
    assert all(
        abs(keep - real) <= tolerance
        for keep, real in zip(water_fill(sizes, scores, total, cap), expected, strict=True)
    )


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.lists(st.integers(0, 10**11), min_size=1, max_size=12), st.data())
def test_proportional_is_within_one_of_the_exact_share(sizes: list[int], data: st.DataObject) -> None:
    assume(sum(sizes) > 0)
    total = data.draw(st.integers(0, sum(sizes)))
    keeps = proportional(sizes, total)
    assert sum(keeps) == total
    assert all(keep <= size for keep, size in zip(keeps, sizes, strict=True))
    assert all(
        abs(keep - Fraction(total * size, sum(sizes))) < 1 for keep, size in zip(keeps, sizes, strict=True)
    )


def test_remainders_go_to_the_largest_and_ties_to_the_lowest_index() -> None:
    assert proportional([10, 10, 10], 10) == [4, 3, 3]
    assert proportional([10, 10, 10], 11) == [4, 4, 3]
    assert proportional([1, 3, 4], 6) == [1, 2, 3]  # shares 0.75, 2.25, 3
    assert proportional([0, 0], 0) == [0, 0]
    assert water_fill([100, 50, 70], [1.0, 1.0, 1.0], 50, 1.0) == [
        17,
        17,
        16,
    ]  # not in the order in which groups fill up


def test_by_hand() -> None:
    # Floors 4, 4, 4; the other 12 flow 1:2:3 but group 2 has room for 6 only, so 0 and 1 share the other 6 as
    # 1:2.
    assert water_fill([10, 10, 10], [1.0, 2.0, 3.0], 24, 0.6) == [6, 8, 10]
    # The next weight to keep once every scored group is full goes where there is room.
    assert water_fill([10, 10, 30], [1.0, 0.0, 0.0], 10 + 4 + 12 + 8, 0.6) == [10, 6, 18]
    assert water_fill([10, 10], [1.0, 0.0], 14, 0.6) == [10, 4]


@pytest.mark.parametrize("cap", [0.6, 0.7, 0.7 + 0.1, 0.8 + 0.1, 0.1 + 0.2])
def test_floors_do_not_suffer_from_float_error(cap: float) -> None:
    size = 3 * 10**10
    floor = size * (10 - round(10 * cap)) // 10
    assert water_fill([size], [1.0], floor, cap) == [floor]
    with pytest.raises(ValueError, match="raise the cap"):
        water_fill([size], [1.0], floor - 1, cap)


def test_only_ratios_of_scores_matter() -> None:
    sizes, scores = [1000, 3000, 777, 10], [0.3, 1.7, 0.0, 2.5]
    assert water_fill(sizes, scores, 2500, 0.7) == water_fill(
        sizes, [score * 2.0**200 for score in scores], 2500, 0.7
    )


@pytest.mark.parametrize(
    ("sizes", "scores", "total", "cap", "message"),
    [
        ([10, 10], [1.0, math.nan], 10, 0.6, "score 1 is nan"),
        ([10, 10], [math.inf, 1.0], 10, 0.6, "score 0 is inf"),
        ([10, 10], [1.0, -1.0], 10, 0.6, "score 1 is -1.0"),
        ([10, 10], [0.0, -0.0], 10, 0.6, "all 2 scores are 0"),
        ([10, 10], [1.0], 10, 0.6, "2 sizes and 1 scores"),
        ([10, 10], [1.0, 1.0], 7, 0.6, "keep 8 weights, but the target sparsity 0.65 leaves only 7"),
        ([10, 10], [1.0, 1.0], 21, 0.6, "valid totals are 0 to 20"),
        ([10, 10], [1.0, 1.0], -1, 1.0, "valid totals are 0 to 20"),
        ([10, 10], [1.0, 1.0], 10, 1.1, "0 to 1; found 1.1"),
        ([10, 10], [1.0, 1.0], 10, math.nan, "0 to 1; found nan"),
        ([10, -1], [1.0, 1.0], 5, 0.6, "no negative size"),
        ([], [], 0, 0.6, "at least one group"),
    ],
)
def test_impossible_budgets(
    sizes: list[int], scores: list[float], total: int, cap: float, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        water_fill(sizes, scores, total, cap)


@pytest.mark.parametrize(("sizes", "total"), [([], 0), ([1, 2], 4), ([1, 2], -1), ([3, -1], 1)])
def test_impossible_shares(sizes: list[int], total: int) -> None:
    with pytest.raises(ValueError, match=r"valid totals|at least one group"):
        proportional(sizes, total)


@golden.needs_golden
@pytest.mark.parametrize("case", golden.cases("allocation"))
def test_published_allocation(case: str) -> None:
    facts = golden.cases("allocation")[case]
    sizes, whole = facts["sizes"], sum(facts["sizes"])
    total = whole - math.ceil(whole * Fraction(str(facts["sparsity"])))
    keeps = water_fill(sizes, facts["scores"], total, facts["cap"])
    assert sum(keeps) == total
    for keep, size, published in zip(keeps, sizes, facts["result"], strict=True):
        assert abs(1 - keep / size - published) < 1e-5
