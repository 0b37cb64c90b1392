import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ecoflap.ops import selection
from ecoflap.ops.selection import select_by_row, select_in_matrix, select_in_rows, select_n_of_m

from . import reference

# Few distinct values, so that most draws have ties at the threshold.
SCORES = st.sampled_from([-1.0, -0.0, 0.0, 0.5, 1.0, 2.0, math.inf, -math.inf])
DTYPES = st.sampled_from([torch.float32, torch.float16, torch.bfloat16, torch.float64])


@st.composite
def metrics(draw: st.DrawFn, group: int = 1) -> Tensor:
    rows, cols = draw(st.integers(1, 6)), group * draw(st.integers(1, 6))
    values = draw(st.lists(SCORES, min_size=rows * cols, max_size=rows * cols))
    return torch.tensor(values, dtype=draw(DTYPES)).view(rows, cols)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(metrics(), st.data())
def test_matrix_equals_stable_sort(metric: Tensor, data: st.DataObject) -> None:
    keep = data.draw(st.integers(0, metric.numel()))
    mask = select_in_matrix(metric, keep)
    assert mask.dtype == torch.bool
    assert int(mask.sum()) == keep
    assert torch.equal(mask, reference.matrix_mask(metric, keep))
    stored_by_columns = metric.t().contiguous().t()
    assert torch.equal(select_in_matrix(stored_by_columns, keep), mask)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(metrics(), st.data())
def test_rows_equal_stable_sort_with_exact_total(metric: Tensor, data: st.DataObject) -> None:
    keep = data.draw(st.integers(0, metric.numel()))
    mask = select_in_rows(metric, keep)
    counts = mask.sum(dim=1)
    assert int(counts.sum()) == keep
    assert int(counts.max() - counts.min()) <= 1
    assert torch.equal(mask, reference.row_mask(metric, keep))


@settings(max_examples=300, deadline=None, derandomize=True)
@given(metrics(), st.data())
def test_counts_of_rows_equal_a_stable_sort_of_each(metric: Tensor, data: st.DataObject) -> None:
    rows, cols = metric.shape
    keep = torch.tensor(data.draw(st.lists(st.integers(0, cols), min_size=rows, max_size=rows)))
    mask = select_by_row(metric, keep)
    assert mask.dtype == torch.bool
    assert torch.equal(mask.sum(dim=1), keep)
    expected = [
        reference.matrix_mask(row.unsqueeze(0), int(count)) for row, count in zip(metric, keep, strict=True)
    ]
    assert torch.equal(mask, torch.cat(expected))


@pytest.mark.parametrize("keep", [[3, 3], [3, 3, 3, 3], [3, -1, 3], [3, 6, 3]])
def test_impossible_counts_of_rows(keep: list[int]) -> None:
    with pytest.raises(ValueError, match="the matrix has 3 rows of 5"):
        select_by_row(torch.ones(3, 5), torch.tensor(keep))


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.integers(1, 12), st.data())
def test_n_of_m_equals_stable_sort(m: int, data: st.DataObject) -> None:
    metric, n = data.draw(metrics(group=m)), data.draw(st.integers(1, m))
    mask = select_n_of_m(metric, n, m)
    assert torch.all(mask.view(len(metric), -1, m).sum(dim=2) == n)
    assert torch.equal(mask, reference.n_of_m_mask(metric, n, m))


@pytest.mark.parametrize("keep", [0, 1, 1000, 4095, 4096])
@pytest.mark.parametrize("values", [1, 3, 10**6])
def test_random_scores_from_both_ends(values: int, keep: int) -> None:
    """Of hardly any tie, of hundreds of equal scores, and of nothing else."""
    metric = torch.rand(64, 64, generator=torch.Generator().manual_seed(0)).mul(values).floor()
    assert torch.equal(select_in_matrix(metric, keep), reference.matrix_mask(metric, keep))
    assert torch.equal(select_in_rows(metric, keep), reference.row_mask(metric, keep))


@pytest.mark.parametrize("keep", [1, 23, 36, 59])
def test_rows_that_are_partitioned_a_few_at_a_time(monkeypatch: pytest.MonkeyPatch, keep: int) -> None:
    metric = torch.randn(10, 6, generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr(selection, "PARTITIONED", 20)  # three rows, and one at the end
    assert torch.equal(select_in_rows(metric, keep), reference.row_mask(metric, keep))


def test_all_equal_prunes_the_lowest_indices() -> None:
    assert select_in_matrix(torch.zeros(2, 3), 2).tolist() == [[False, False, False], [False, True, True]]
    assert select_in_rows(torch.zeros(2, 3), 3).tolist() == [[False, True, True], [False, False, True]]
    assert select_n_of_m(torch.zeros(1, 4), 2, 4).tolist() == [[False, False, True, True]]


def test_left_over_goes_to_the_row_with_the_best_pruned_score() -> None:
    metric = torch.tensor([[9.0, 1.0, 2.0], [9.0, 5.0, 4.0]])
    assert select_in_rows(metric, 3).tolist() == [[True, False, False], [True, True, False]]


def test_strided_metrics() -> None:
    metric = torch.randn(8, 12, generator=torch.Generator().manual_seed(0))
    for view in (metric.T, metric[:, ::3], metric[:, :1]):
        assert torch.equal(select_in_matrix(view, 5), select_in_matrix(view.contiguous(), 5))
        assert torch.equal(select_in_rows(view, 5), select_in_rows(view.contiguous(), 5))


@pytest.mark.parametrize(
    "select",
    [lambda m: select_in_matrix(m, 4), lambda m: select_in_rows(m, 0), lambda m: select_n_of_m(m, 2, 2)],
)
def test_nan_is_an_error_even_when_nothing_or_everything_is_kept(select) -> None:
    with pytest.raises(ValueError, match="1 of 4 scores are NaN"):
        select(torch.tensor([[0.0, math.nan], [1.0, 2.0]]))


@pytest.mark.parametrize("keep", [-1, 7])
def test_impossible_counts(keep: int) -> None:
    for select in (select_in_matrix, select_in_rows):
        with pytest.raises(ValueError, match="valid counts are 0 to 6"):
            select(torch.zeros(2, 3), keep)


@pytest.mark.parametrize(
    ("n", "m", "message"),
    [(2, 4, "m must divide 6"), (0, 3, "between 1 and m"), (4, 3, "between 1 and m"), (0, 0, "between")],
)
def test_impossible_patterns(n: int, m: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        select_n_of_m(torch.zeros(2, 6), n, m)


@pytest.mark.parametrize("shape", [(6,), (0, 3), (3, 0), (1, 2, 3)])
def test_only_matrices(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="non-empty matrix"):
        select_in_matrix(torch.zeros(shape), 0)
