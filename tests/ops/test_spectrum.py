import math

import pytest
import torch
from torch import Tensor

from ecoflap.ops.spectrum import eigenvalues, tail_exponent


def pareto(exponent: float, count: int) -> Tensor:
    """Quantiles of the power law x^-exponent for x of at least 1, ascending."""
    levels = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    return (1 - levels) ** (-1 / (exponent - 1))


def slow_exponent(values: list[float], tail: str) -> float:
    """Hill's estimator at the start that the definition of ``tail`` gives, without vectors."""

    def hill(start: int) -> float:
        return 1 + len(values[start:]) / sum(math.log(value / values[start]) for value in values[start:])

    def distance(start: int) -> float:
        count, alpha = len(values) - start, hill(start)
        return max(
            abs(1 - (value / values[start]) ** (1 - alpha) - place / count)
            for place, value in enumerate(values[start:])
        )

    if tail == "median":
        return hill(len(values) // 2)
    low, high = math.log10(values[0]), math.log10(values[-1])
    counts = [0] * 100
    for value in values:
        counts[min(int((math.log10(value) - low) / (high - low) * 100), 99)] += 1
    edge = 10 ** (low + (high - low) * counts.index(max(counts)) / 100)
    starts = [
        place for place, value in enumerate(values[:-1]) if math.log10(0.95 * edge) <= value <= 1.5 * edge
    ]
    return hill(min(starts, key=distance))


@pytest.mark.parametrize("exponent", [1.5, 2.0, 3.5])
def test_the_exponent_of_a_power_law_is_found(exponent: float) -> None:
    values = pareto(exponent, 2000)
    assert tail_exponent(values, "median") == pytest.approx(exponent, rel=0.02)
    assert tail_exponent(values, "peak") == pytest.approx(exponent, rel=0.05)


@pytest.mark.parametrize("tail", ["peak", "median"])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 30.0])
@pytest.mark.parametrize("seed", range(4))
def test_equals_the_definition(seed: int, scale: float, tail: str) -> None:
    generator = torch.Generator().manual_seed(seed)
    weight = scale * torch.randn(40, 30, generator=generator) @ torch.randn(30, 30, generator=generator)
    values = eigenvalues(weight)
    assert tail_exponent(values, tail) == pytest.approx(slow_exponent(values.tolist(), tail), rel=1e-9)


def test_eigenvalues_of_either_orientation_and_of_half_precision() -> None:
    weight = torch.randn(6, 9, generator=torch.Generator().manual_seed(0)).bfloat16()
    expected = torch.linalg.eigvalsh(weight.double() @ weight.double().t())
    for given in (weight, weight.t()):
        torch.testing.assert_close(eigenvalues(given), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("tail", ["peak", "median"])
@pytest.mark.parametrize("weight", [torch.zeros(4, 5), torch.eye(4), torch.ones(1, 7), 3 * torch.eye(6)])
def test_spectra_without_a_tail(weight: Tensor, tail: str) -> None:
    assert math.isnan(tail_exponent(eigenvalues(weight), tail))


def test_two_eigenvalues_suffice() -> None:
    values = eigenvalues(torch.diag(torch.tensor([1.0, 2.0, 2.0])))
    assert tail_exponent(values, "peak") == pytest.approx(1 + 3 / (2 * math.log(4)))


def test_eigenvalues_of_zero_are_left_out() -> None:
    assert eigenvalues(torch.diag(torch.tensor([3.0, 0.0, 2.0]))).tolist() == pytest.approx([4.0, 9.0])
