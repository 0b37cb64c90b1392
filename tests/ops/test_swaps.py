import pytest
import torch
from torch import Tensor

from ecoflap.ops import select_in_rows, select_n_of_m, swap_masks, wanda_metric

from . import reference
from .problem import problem


def wanda_mask(weight: Tensor, gram: Tensor, keep: int) -> Tensor:
    return select_in_rows(wanda_metric(weight, gram.diagonal()), keep)


def best_single_swap(weight: Tensor, gram: Tensor, mask: Tensor, group: int) -> Tensor:
    """The masks after the best swap of each row, all pairs tried by the definition of the error."""
    result = mask.clone()
    for row in range(len(weight)):
        losses = {None: float(reference.row_losses(weight[row : row + 1], gram, mask[row : row + 1]))}
        for p in (~mask[row]).nonzero().flatten().tolist():
            for q in mask[row].nonzero().flatten().tolist():
                if p // group == q // group:
                    tried = mask[row : row + 1].clone()
                    tried[0, p], tried[0, q] = True, False
                    losses[p, q] = float(reference.row_losses(weight[row : row + 1], gram, tried))
        if (best := min(losses, key=losses.__getitem__)) is not None:
            result[row, best[0]], result[row, best[1]] = True, False
    return result


@pytest.mark.parametrize("seed", range(4))
def test_one_swap_is_the_best_of_all_pairs(seed: int) -> None:
    weight, gram = problem(7, 12, seed)  # fewer columns than candidates: all pairs are looked at
    mask = wanda_mask(weight, gram, 7 * 5 + 3)
    swapped = swap_masks(weight, gram, mask, swaps=1)
    assert torch.equal(swapped, best_single_swap(weight, gram, mask, group=12))


@pytest.mark.parametrize(("n", "m"), [(2, 4), (1, 3), (4, 8)])
def test_one_swap_is_the_best_of_all_pairs_within_groups(n: int, m: int) -> None:
    weight, gram = problem(7, 24)
    mask = select_n_of_m(wanda_metric(weight, gram.diagonal()), n, m)
    swapped = swap_masks(weight, gram, mask, swaps=1, group=m)
    assert torch.equal(swapped, best_single_swap(weight, gram, mask, group=m))
    assert bool((swapped != mask).any())


@pytest.mark.parametrize("group", [None, 4])
@pytest.mark.parametrize("cols", [40, 200])
def test_no_row_gets_worse_and_counts_stay(cols: int, group: int | None) -> None:
    weight, gram = problem(20, cols)
    metric = wanda_metric(weight, gram.diagonal())
    mask = select_n_of_m(metric, 2, 4) if group else select_in_rows(metric, 20 * cols // 3)
    before = reference.row_losses(weight, gram, mask)
    for swaps in (1, 2, 5, 50):
        swapped = swap_masks(weight, gram, mask, swaps, group)
        after = reference.row_losses(weight, gram, swapped)
        assert bool((after <= before * (1 + 1e-6)).all())
        assert torch.equal(swapped.sum(dim=1), mask.sum(dim=1))
        assert int((swapped & ~mask).sum(dim=1).max()) <= swaps
        if group:
            assert bool((swapped.view(20, -1, 4).sum(dim=2) == 2).all())
    assert float(after.sum()) < 0.9 * float(before.sum())


def test_ends_where_no_swap_helps() -> None:
    weight, gram = problem(7, 12)
    swapped = swap_masks(weight, gram, wanda_mask(weight, gram, 40), swaps=1000)
    assert torch.equal(swapped, best_single_swap(weight, gram, swapped, group=12))
    assert torch.equal(swapped, swap_masks(weight, gram, swapped, swaps=1000))


def test_a_swap_that_gains_no_more_than_rounding_is_not_made() -> None:
    weight, mask = torch.tensor([[1.0, 1.000002], [1.0, 1.0001]]), torch.tensor([[True, False]] * 2)
    assert swap_masks(weight, torch.eye(2), mask, swaps=1).tolist() == [[True, False], [False, True]]


def test_uncorrelated_inputs_leave_wanda_as_it_is() -> None:
    weight = torch.randn(6, 20, generator=torch.Generator().manual_seed(0))
    gram = torch.rand(20, generator=torch.Generator().manual_seed(1)).diag()
    mask = wanda_mask(weight, gram, 60)
    assert torch.equal(swap_masks(weight, gram, mask, swaps=10), mask)


@pytest.mark.parametrize("keep", [0, 1, 6 * 20 - 1, 6 * 20])
def test_rows_with_nothing_to_swap(keep: int) -> None:
    weight, gram = problem(6, 20)
    mask = wanda_mask(weight, gram, keep)
    swapped = swap_masks(weight, gram, mask, swaps=10)
    assert torch.equal(swapped.sum(dim=1), mask.sum(dim=1))
    whole = mask.all(dim=1) | ~mask.any(dim=1)
    assert torch.equal(swapped[whole], mask[whole])


def test_dead_columns_and_zero_weights_are_given_up() -> None:
    weight, gram = problem(6, 12)
    gram[:3], gram[:, :3] = 0, 0
    weight[:, 3] = 0
    mask = torch.zeros(6, 12, dtype=torch.bool)
    mask[:, :6] = True
    swapped = swap_masks(weight, gram, mask, swaps=100)
    assert bool((swapped.sum(dim=1) == 6).all())
    assert int(swapped[:, :4].sum()) < 6
    assert torch.equal(swapped, best_single_swap(weight, gram, swapped, group=12))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype: torch.dtype) -> None:
    weight, gram = problem(6, 20)
    half, matrix = weight.to(dtype), gram.clone()
    mask = wanda_mask(half, gram, 60)
    before = mask.clone()
    assert torch.equal(swap_masks(half, gram, mask, 10), swap_masks(half.float(), gram, mask, 10))
    assert torch.equal(mask, before)
    assert torch.equal(gram, matrix)


def test_arguments_that_do_not_match() -> None:
    weight, gram = problem(6, 20)
    mask = wanda_mask(weight, gram, 60)
    with pytest.raises(ValueError, match=r"found \(6, 20\), \(20, 20\) and \(6, 19\)"):
        swap_masks(weight, gram, mask[:, :19], 1)
    weight[0, 0] = float("nan")
    with pytest.raises(ValueError, match="1 of 120 weights are NaN or infinite"):
        swap_masks(weight, gram, mask, 1)
