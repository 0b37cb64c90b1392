import math

import pytest
import torch

from ecoflap.ops import descend, gaussian, shift_to_budget


def doubles(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def weighted_mean(values: torch.Tensor, sizes: torch.Tensor) -> float:
    total = sum(float(value) * float(size) for value, size in zip(values, sizes, strict=True))
    return total / float(sizes.sum())


@pytest.mark.parametrize("target", [0.0, 0.01, 0.5, 0.9, 0.98])
def test_a_shift_meets_the_budget_and_the_bounds(target: float) -> None:
    sparsities = 0.5 + 0.3 * gaussian([40], "sparsities").double()
    sizes = gaussian([40], "sizes").abs().double() * 1000 + 1
    shifted = shift_to_budget(sparsities, sizes, target, 0.98)
    assert weighted_mean(shifted, sizes) == pytest.approx(target, abs=1e-12)
    assert float(shifted.min()) >= 0
    assert float(shifted.max()) <= 0.98


def test_a_shift_adds_one_number_where_nothing_is_clipped() -> None:
    sparsities, sizes = doubles(0.4, 0.5, 0.7), doubles(1, 2, 5)
    shifted = shift_to_budget(sparsities, sizes, 0.55, 1.0)
    differences = shifted - sparsities
    assert torch.allclose(differences, differences[0].expand(3), atol=1e-12)
    assert shift_to_budget(doubles(0.3), doubles(7), 0.6, 1.0).tolist() == pytest.approx([0.6])


def test_a_budget_outside_the_bounds_is_refused() -> None:
    with pytest.raises(ValueError, match=r"target 0.99 is outside the allowed sparsities \[0, 0.98\]"):
        shift_to_budget(doubles(0.5), doubles(1), 0.99, 0.98)


def test_a_step_is_the_formula() -> None:
    sparsities, marginals, sizes = doubles(0.5, 0.5, 0.5, 0.5), doubles(4, 1, 0, -2), doubles(1, 2, 3, 2)
    mean = (4 * 1 + 1 * 2 + 0 * 3 + 2 * 2) / 8
    expected = [0.5 - 0.06 * (m - mean) / (abs(m) + mean) for m in (4, 1, 0, -2)]
    found = descend(sparsities, marginals, sizes, 0.03)
    assert found.tolist() == pytest.approx(expected)
    assert found.tolist()[2:] == pytest.approx([0.56, 0.56])  # not worth keeping: the largest step


def test_a_step_of_positive_marginals_is_a_tanh_of_their_logarithms() -> None:
    marginals = gaussian([30], "marginals").double().exp()
    sizes = torch.ones(30, dtype=torch.float64)
    steps = descend(torch.zeros_like(marginals), marginals, sizes, 0.03)
    mean = float(marginals.mean())
    expected = [-0.06 * math.tanh(math.log(m / mean) / 2) for m in marginals.tolist()]
    assert steps.tolist() == pytest.approx(expected)


def test_a_step_does_not_depend_on_the_unit_of_the_loss() -> None:
    sparsities, sizes = doubles(0.2, 0.6, 0.7), doubles(3, 4, 5)
    marginals = doubles(1e-3, 5e-3, -1e-4)
    scaled = descend(sparsities, marginals * 1e-9, sizes, 0.03)
    assert torch.allclose(scaled, descend(sparsities, marginals, sizes, 0.03), atol=1e-12)


def test_a_flat_loss_moves_nothing() -> None:
    assert descend(doubles(0.2, 0.6), doubles(0, 0), doubles(1, 1), 0.03).tolist() == [0.2, 0.6]
