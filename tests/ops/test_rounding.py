import pytest

from ecoflap.ops import round_to_total


@pytest.mark.parametrize("total", [0, 1, 17, 59, 60])
def test_rounding_meets_the_total(total: int) -> None:
    sizes = [10, 20, 30]
    exact = [9.5, 10.25, 0.75]
    found = round_to_total(exact, sizes, total)
    assert sum(found) == total
    assert all(0 <= count <= size for count, size in zip(found, sizes, strict=True))


def test_rounding_moves_the_largest_remainders_by_less_than_one() -> None:
    exact = [3.2, 4.7, 5.7, 1.4]
    assert round_to_total(exact, [9, 9, 9, 9], 15) == [3, 5, 6, 1]
    assert round_to_total([0.5, 0.5], [1, 1], 1) == [1, 0]  # ties: the lowest index


def test_an_impossible_total_is_refused() -> None:
    with pytest.raises(ValueError, match="at most 3 in all have the sum 4"):
        round_to_total([1.0, 2.0], [1, 2], 4)
