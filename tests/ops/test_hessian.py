import math

import pytest
import torch
from torch import Tensor

from ecoflap.ops.hessian import NotPositiveDefiniteError, inverse_factor, unit_columns


def gram(cols: int, tokens: int, seed: int = 0) -> Tensor:
    inputs = torch.randn(tokens, cols, generator=torch.Generator().manual_seed(seed))
    return inputs.T @ inputs / tokens


@pytest.mark.parametrize(("cols", "tokens"), [(1, 4), (7, 30), (48, 200), (48, 10), (301, 1000)])
def test_factor_of_the_damped_inverse(cols: int, tokens: int) -> None:
    hessian = gram(cols, tokens)
    before = hessian.clone()
    factor = inverse_factor(hessian, 0.05)
    damped = hessian.double() + 0.05 * hessian.diagonal().double().mean() * torch.eye(cols)
    upper = factor.upper.double()
    assert factor.damping == 0.05
    assert factor.upper.dtype == torch.float32
    assert torch.equal(factor.upper, factor.upper.triu())
    assert torch.all(factor.upper.diagonal() > 0)
    torch.testing.assert_close(
        upper.T @ upper @ damped, torch.eye(cols, dtype=torch.float64), atol=2e-4, rtol=0
    )
    assert torch.equal(hessian, before)


@pytest.mark.parametrize("scale", [1.0, 1e-4, 1e4])
def test_dead_columns_count_as_zeros_in_the_mean_at_any_scale(scale: float) -> None:
    hessian = scale * torch.diag(torch.tensor([3.0, 0.0, 5.0, 0.0]))
    factor = inverse_factor(hessian, 0.1)
    assert factor.dead.tolist() == [False, True, False, True]
    expected = [(scale * (diagonal + 0.1 * 2)) ** -0.5 for diagonal in (3.0, 2.0, 5.0, 2.0)]
    torch.testing.assert_close(factor.upper, torch.diag(torch.tensor(expected)))


def test_all_columns_dead() -> None:
    factor = inverse_factor(torch.zeros(3, 3))
    assert factor.dead.all()
    assert factor.upper.isfinite().all()


@pytest.mark.parametrize("damping", [0.0, 1e-9])
def test_singular_with_hardly_any_damping_escalates(damping: float) -> None:
    factor = inverse_factor(torch.ones(4, 4), damping)
    assert factor.damping == pytest.approx(1e-4)


@pytest.mark.parametrize(("start", "used"), [(0.01, 1.0), (0.5, 5.0), (2.0, 2.0)])
def test_damping_used_when_a_lot_is_needed(start: float, used: float) -> None:
    # Eigenvalues 1 +- 1.5: positive definite only with damping above 0.5.
    factor = inverse_factor(torch.tensor([[1.0, 1.5], [1.5, 1.0]]), start)
    assert factor.damping == pytest.approx(used)


@pytest.mark.parametrize("damping", [0.0, 0.01, 1.0])
def test_indefinite_beyond_any_damping_is_an_error_not_a_loop(damping: float) -> None:
    with pytest.raises(
        NotPositiveDefiniteError, match="not positive definite even with damping 1 of its mean diagonal"
    ):
        inverse_factor(torch.tensor([[1.0, 5.0], [5.0, 1.0]]), damping)


def test_success_with_nan_counts_as_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_failure_reported(matrix: Tensor) -> tuple[Tensor, Tensor]:
        return torch.full_like(matrix, math.nan), torch.tensor(0)

    monkeypatch.setattr(torch.linalg, "cholesky_ex", no_failure_reported)
    with pytest.raises(NotPositiveDefiniteError):
        inverse_factor(torch.eye(3))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_non_finite_hessian(bad: float) -> None:
    hessian = torch.eye(3)
    hessian[0, 1] = bad
    with pytest.raises(ValueError, match="1 of 9 entries") as raised:
        inverse_factor(hessian)
    assert not isinstance(raised.value, NotPositiveDefiniteError)


@pytest.mark.parametrize("damping", [-0.1, math.nan, math.inf])
def test_impossible_damping(damping: float) -> None:
    with pytest.raises(ValueError, match="damping is a fraction"):
        inverse_factor(torch.eye(3), damping)


@pytest.mark.parametrize("shape", [(2, 3), (4,), (0, 0)])
def test_not_square(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="square matrix"):
        inverse_factor(torch.zeros(shape))


def test_scale_does_not_matter() -> None:
    small, large = (inverse_factor(gram(16, 64) * scale) for scale in (1e-6, 1e6))
    torch.testing.assert_close(small.upper * 1e-3, large.upper * 1e3, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("scale", [1e-20, 1e20])
def test_unit_columns_are_the_same_at_any_scale(scale: float) -> None:
    matrix = gram(6, 40)
    matrix[2], matrix[:, 2] = 0, 0
    expected, norms = unit_columns(matrix)
    scaled, scaled_norms = unit_columns(matrix * scale)
    torch.testing.assert_close(scaled, expected)
    torch.testing.assert_close(scaled_norms, norms * scale**0.5, rtol=1e-5, atol=0)
    assert float(norms[2]) == pytest.approx(1e-8 * float(norms.max()))
