import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ecoflap.ops.ramp import ramp, shift_to_total

SIZES = st.lists(st.integers(1, 10**10), min_size=1, max_size=12)
VALUES = st.one_of(st.floats(-1e300, 1e300), st.floats(-1, 1), st.sampled_from([0.0, 1.0]))


def published(values: Sequence[float], sparsity: float, spread: float) -> list[float]:
    """The share that each block keeps, as OWL and its successors compute it, from the mean over blocks."""
    scaled = np.asarray(values, dtype=np.float64)
    scaled = 2 * spread * (scaled - scaled.min()) / (scaled.max() - scaled.min())
    return [float(share) for share in scaled - scaled.mean() + (1 - sparsity)]


def by_bisection(sizes: Sequence[int], shares: Sequence[float], total: int) -> list[float]:
    """What each group keeps at the shift that 200 halvings find."""
    low, high = -max(shares) - 1, 2 - min(shares)
    for _ in range(200):
        middle = (low + high) / 2
        kept = [size * min(max(middle + share, 0), 1) for size, share in zip(sizes, shares, strict=True)]
        low, high = (middle, high) if sum(kept) < total else (low, middle)
    return [size * min(max(high + share, 0), 1) for size, share in zip(sizes, shares, strict=True)]


@settings(max_examples=200, deadline=None, derandomize=True)
@given(SIZES, st.floats(0, 1e3), st.data())
def test_total_is_exact_and_no_group_leaves_its_bounds(
    sizes: list[int], spread: float, data: st.DataObject
) -> None:
    values = data.draw(st.lists(VALUES, min_size=len(sizes), max_size=len(sizes)))
    total = data.draw(st.integers(0, sum(sizes)))
    keeps = ramp(sizes, values, total, spread)
    assert sum(keeps) == total
    assert all(isinstance(keep, int) for keep in keeps)
    assert all(0 <= keep <= size for keep, size in zip(keeps, sizes, strict=True))
    for keep, size, value in zip(keeps, sizes, values, strict=True):
        for other_keep, other_size, other_value in zip(keeps, sizes, values, strict=True):
            if value <= other_value:  # up to a weight each of rounding
                assert (keep - 1) * other_size <= (other_keep + 1) * size


@settings(max_examples=100, deadline=None, derandomize=True)
@given(SIZES, st.data())
def test_equals_bisection(sizes: list[int], data: st.DataObject) -> None:
    shares = data.draw(st.lists(st.floats(-2, 2), min_size=len(sizes), max_size=len(sizes)))
    total = data.draw(st.integers(0, sum(sizes)))
    expected = by_bisection(sizes, shares, total)
    for keep, real in zip(shift_to_total(sizes, shares, total), expected, strict=True):
        assert abs(keep - real) <= 1 + 1e-12 * sum(sizes)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.lists(st.floats(0, 1e6), min_size=2, max_size=40), st.floats(0.3, 0.7), st.floats(0, 0.15))
def test_groups_of_one_size_get_the_published_shares(
    values: list[float], sparsity: float, spread: float
) -> None:
    if max(values) - min(values) < 1e-6:
        return
    size = 10**9
    total = round(size * len(values) * (1 - sparsity))
    for keep, share in zip(
        ramp([size] * len(values), values, total, spread), published(values, sparsity, spread), strict=True
    ):
        assert keep == pytest.approx(size * share, abs=2)


def test_what_one_group_cannot_give_comes_from_the_others() -> None:
    # The published shares are 0.1 + (-0.5, 0, 0.5). The first stops at 0; the others move down, until the
    # second is at 0 as well.
    assert ramp([10, 10, 10], [0, 1, 2], 3, 0.5) == [0, 0, 3]
    # 0.25 + (-0.3, 0, 0.3): the first stops at 0, and the others move down by 0.025 each.
    assert ramp([1000, 1000, 1000], [0, 1, 2], 750, 0.3) == [0, 225, 525]
    assert ramp([10, 10, 10], [0, 1, 2], 27, 0.5) == [7, 10, 10]


def test_equal_values_give_equal_shares() -> None:
    assert ramp([10, 20, 30], [7.0, 7.0, 7.0], 30, 0.3) == [5, 10, 15]
    assert ramp([10, 20, 30], [0, 0, 0], 31, 0.3) == [5, 10, 16]


def test_one_group_and_no_budget_and_the_whole_budget() -> None:
    assert ramp([10], [3.0], 4, 0.08) == [4]
    assert ramp([10, 20], [1, 2], 0, 0.08) == [0, 0]
    assert ramp([10, 20], [1, 2], 30, 0.08) == [10, 20]
    assert ramp([0, 20], [1, 2], 7, 0.08) == [0, 7]


def test_larger_groups_weigh_more() -> None:
    # The difference of the shares is 2 * 0.1, and 100 k + 300 (k + 0.2) = 200 at k = 0.35.
    assert ramp([100, 300], [0, 5], 200, 0.1) == [35, 165]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_values_that_are_not_finite(bad: float) -> None:
    with pytest.raises(ValueError, match=r"value 1 is -?(nan|inf); values must be finite"):
        ramp([5, 5], [0.0, bad], 5, 0.1)
    with pytest.raises(ValueError, match="the spread is"):
        ramp([5, 5], [0.0, 1.0], 5, bad)


@pytest.mark.parametrize(
    ("sizes", "values", "total", "match"),
    [
        ([], [], 0, "need at least one group"),
        ([-1, 2], [0, 1], 1, "need at least one group"),
        ([1, 2], [0], 1, "found 2 sizes and 1 values"),
        ([1, 2], [0, 1], 4, "asked to keep 4 weights, but the groups hold 3"),
        ([1, 2], [0, 1], -1, "asked to keep -1 weights"),
    ],
)
def test_impossible_requests(sizes: list[int], values: list[float], total: int, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        shift_to_total(sizes, values, total)
