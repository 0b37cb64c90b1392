import pytest
import torch

from ecoflap.ops import round_in_turn, round_to_total


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
    assert round_to_total([2.5, 3.5], [9, 9], 6) == [3, 3]


def test_rounding_below_the_whole_parts_takes_from_the_smallest_remainders() -> None:
    assert round_to_total([3.2, 4.7, 5.0], [9, 9, 9], 10) == [2, 4, 4]
    assert round_to_total([3.2, 4.7], [9, 9], 6) == [2, 4]


def test_an_impossible_total_is_refused() -> None:
    with pytest.raises(ValueError, match="total of 4 from sizes that add up to 3; valid totals are 0 to 3"):
        round_to_total([1.0, 2.0], [1, 2], 4)


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("up", [False, True])
def test_rounding_in_turn_moves_no_number_by_one_and_meets_the_total(seed: int, up: bool) -> None:
    generator = torch.Generator().manual_seed(seed)
    count = 1 + seed * seed
    exact = torch.rand(count, generator=generator, dtype=torch.float64) * 40
    exact[:: 1 + seed % 3] = exact[:: 1 + seed % 3].round()  # whole numbers are among them
    total = int(exact.sum().floor()) + (up and bool(exact.sum() % 1 > 0))
    found = round_in_turn(exact, total)
    assert int(found.sum()) == total
    assert (found - exact).abs().max() < 1
    assert torch.equal(found[exact % 1 == 0], exact[exact % 1 == 0].long())


@pytest.mark.parametrize("total", [9, 10])
def test_rounding_in_turn_keeps_equal_numbers_even_all_along(total: int) -> None:
    exact = torch.full((40,), 0.24, dtype=torch.float64)
    sums = round_in_turn(exact, total).cumsum(0)
    assert (sums - exact.cumsum(0)).abs().max() <= 1
    assert round_in_turn(torch.full((4,), 2.5, dtype=torch.float64), 10).tolist() == [3, 2, 3, 2]
    for halves_to, rounded in ((7, [2, 3, 2]), (8, [3, 2, 3])):
        assert round_in_turn(torch.full((3,), 2.5, dtype=torch.float64), halves_to).tolist() == rounded


@pytest.mark.parametrize("total", [6, 9])
def test_rounding_in_turn_refuses_a_total_that_is_not_near(total: int) -> None:
    with pytest.raises(ValueError, match=f"can't be rounded to the sum {total}"):
        round_in_turn(torch.tensor([2.5, 2.5, 2.25], dtype=torch.float64), total)


def test_rounding_in_turn_reads_a_whole_number_with_a_rounding_error_as_whole() -> None:
    exact = torch.tensor([3 - 1e-13, 1.5, 3 + 1e-13, 1.5], dtype=torch.float64)
    assert round_in_turn(exact, 9).tolist() == [3, 2, 3, 1]
