import pytest
import torch
from torch import Tensor

from ecoflap.ops.greedy_removal import greedy_removal_error

from .problem import problem


def row_by_row(weight: Tensor, gram: Tensor, share: float, columns: int) -> float:
    """Try every weight of the columns at each step, with the whole error e^T G e of the removed set."""
    total = 0.0
    for row in weight.double():
        removed = torch.zeros_like(row)
        for start in range(0, len(row), columns):
            inside = list(range(start, min(start + columns, len(row))))
            for _ in range(int(len(inside) * share)):
                errors = {}
                for index in inside:
                    if not removed[index]:
                        tried = removed.clone()
                        tried[index] = row[index]
                        errors[index] = float(tried @ gram.double() @ tried)
                best = min(errors, key=errors.__getitem__)
                removed[best] = row[best]
        total += float(removed @ gram.double() @ removed)
    return total


@pytest.mark.parametrize("columns", [1, 3, 4, 5, 12, 100])
@pytest.mark.parametrize("share", [0.3, 0.5, 0.9])
def test_equals_trying_every_weight(columns: int, share: float) -> None:
    weight, gram = problem(5, 12)
    expected = row_by_row(weight, gram, share, columns)
    assert greedy_removal_error(weight, gram, share, columns) == pytest.approx(expected, rel=1e-5, abs=1e-6)


def test_removing_everything_leaves_the_outputs_energy() -> None:
    weight, gram = problem(4, 8)
    expected = float(((weight @ gram) * weight).sum())
    assert greedy_removal_error(weight, gram, 1.0, 8) == pytest.approx(expected, rel=1e-5)
    assert greedy_removal_error(weight, gram, 1.0, 3) == pytest.approx(expected, rel=1e-5)


def test_dead_columns_go_for_nothing() -> None:
    weight, gram = problem(4, 8)
    gram[::2], gram[:, ::2] = 0, 0
    assert greedy_removal_error(weight, gram, 0.5, 8) == 0
    assert greedy_removal_error(torch.zeros(4, 8), gram, 0.5, 8) == 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_widened(dtype: torch.dtype) -> None:
    weight, gram = problem(4, 8)
    weight = weight.to(dtype)
    assert greedy_removal_error(weight, gram, 0.5, 4) == greedy_removal_error(weight.float(), gram, 0.5, 4)


def test_what_is_given_stays_as_it_is() -> None:
    weight, gram = problem(4, 8)
    before = weight.clone(), gram.clone()
    greedy_removal_error(weight, gram, 0.5, 4)
    assert torch.equal(weight, before[0])
    assert torch.equal(gram, before[1])
