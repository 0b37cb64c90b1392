"""Sums that do not depend on the order in which batches are added."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ecoflap.blocks import drifts
from ecoflap.blocks import gram as grams
from ecoflap.blocks.drifts import Drift
from ecoflap.blocks.gram import STRIP, Gram
from ecoflap.blocks.statistics import MeanSquare

CPU = torch.device("cpu")
COLS = 2048


@pytest.fixture
def batches() -> list[Tensor]:
    torch.manual_seed(0)
    return [torch.randn(16, COLS) * torch.logspace(-3, 3, COLS) for _ in range(24)]


def gathered(batches: list[Tensor]) -> MeanSquare:
    statistic = MeanSquare(COLS, CPU)
    for batch in batches:
        statistic.update(batch)
    return statistic


def exact(batches: list[Tensor]) -> Tensor:
    """The sum of the batches' fp32 sums, fp64."""
    squares = [torch.linalg.vector_norm(batch, dim=0).square().double() for batch in batches]
    return torch.stack(squares).sum(dim=0)


def test_the_sum_is_exact_in_any_order_and_the_mean_is_of_the_nearest_fp32_number(
    batches: list[Tensor],
) -> None:
    wanted = exact(batches)
    for seed in range(5):
        order = torch.randperm(len(batches), generator=torch.Generator().manual_seed(seed)).tolist()
        found = gathered([batches[index] for index in order])
        assert found.sum.equal(wanted)
        assert found.value.equal(wanted.float() / (24 * 16))


def test_a_plain_sum_depends_on_the_order(batches: list[Tensor]) -> None:
    """Otherwise the test above would show nothing."""
    squares = torch.stack([batch.square().sum(dim=0) for batch in batches])
    forward, backward = torch.zeros(2, COLS)
    for index in range(len(squares)):
        forward, backward = forward + squares[index], backward + squares[-1 - index]
    assert (forward != backward).any()


@pytest.mark.parametrize("parts", [2, 3, 4])
def test_parts_add_up_to_the_whole(batches: list[Tensor], parts: int) -> None:
    whole, total = gathered(batches), MeanSquare(COLS, CPU)
    for first in range(parts):
        total.add(gathered(batches[first::parts]))
    assert total.sum.equal(whole.sum)
    assert total.tokens == whole.tokens == 24 * 16


def test_a_stored_sum_is_restored_to_the_bit(batches: list[Tensor]) -> None:
    whole = gathered(batches)
    restored = MeanSquare.restored(whole.kept(), CPU)
    assert restored.sum.equal(whole.sum)
    assert restored.tokens == whole.tokens


@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_an_input_that_is_not_finite_shows(batches: list[Tensor], wrong: float) -> None:
    batches[3][0, 5] = wrong
    value = gathered(batches).value
    assert not value[5].isfinite()
    assert value[:5].isfinite().all()
    assert value[6:].isfinite().all()


@pytest.fixture(params=[1, 48, STRIP, STRIP + 1, 2 * STRIP + 100])
def products(request: pytest.FixtureRequest) -> list[Tensor]:
    """Batches with columns of very different sizes, some of them zero."""
    torch.manual_seed(1)
    scales = torch.logspace(-3, 3, request.param)
    scales[1 : request.param : 40] = 0.0
    return [torch.randn(16, request.param) * scales for _ in range(12)]


def gram(batches: list[Tensor]) -> Gram:
    statistic = Gram(batches[0].shape[1], CPU)
    for batch in batches:
        statistic.update(batch)
    return statistic


def test_a_gram_matrix_is_the_mean_of_the_outer_products(products: list[Tensor]) -> None:
    tokens = torch.cat(products).double()
    value, scale = gram(products).value, tokens.square().sum(dim=0).sqrt()
    assert value.equal(value.t())
    error = (value.double() * len(tokens) - tokens.t() @ tokens).abs()
    assert (error <= 1e-6 * scale[:, None] * scale).all()


def test_a_gram_matrix_is_the_same_in_any_order_and_in_any_parts(products: list[Tensor]) -> None:
    whole = gram(products)
    for seed in range(5):
        order = torch.randperm(len(products), generator=torch.Generator().manual_seed(seed)).tolist()
        shuffled = [products[index] for index in order]
        assert gram(shuffled).value.equal(whole.value)
        total = Gram(whole.cols, CPU)
        for part in (shuffled[:3], shuffled[3:5], shuffled[5:]):
            total.add(gram(part))
        assert total.value.equal(whole.value)
        assert total.tokens == whole.tokens


def test_what_follows_from_a_gram_matrix_is_computed_again_when_it_grows(products: list[Tensor]) -> None:
    first, second, other = gram(products[:6]), gram(products[:6]), gram(products[6:])
    for one in (first, second):
        assert not one.value.equal(gram(products).value)
        one.factor(0.01)
        one.normalised_inverse(0.1, 1.0)
    first.add(other)
    for batch in products[6:]:
        second.update(batch)
    for one in (first, second):
        assert one.value.equal(gram(products).value)
        assert one.factor(0.01).upper.equal(gram(products).factor(0.01).upper)
        inverse = gram(products).normalised_inverse(0.1, 1.0).inverse
        assert one.normalised_inverse(0.1, 1.0).inverse.equal(inverse)


def test_a_drift_is_the_same_in_any_order(products: list[Tensor]) -> None:
    def drift(batches: list[Tensor]) -> Tensor:
        found = Drift(products[0].shape[1], products[0].shape[1], CPU)
        for batch in batches:
            found.update(batch, batch.roll(1, dims=0), batch)
        return found.value

    tokens = torch.cat(products).double()
    rolled = torch.cat([batch.roll(1, dims=0) for batch in products]).double()
    scale = tokens.square().sum(dim=0).sqrt()
    error = (drift(products).double() * len(tokens) - (tokens - rolled).t() @ tokens).abs()
    assert (error <= 1e-5 * scale[:, None] * scale).all()
    assert drift(products).equal(drift(products[::-1]))


def test_a_call_of_more_tokens_than_are_converted_at_once(
    products: list[Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens = torch.cat(products)
    cols = tokens.shape[1]
    found, drift = Gram(cols, CPU), Drift(cols, cols, CPU)
    for module in (grams, drifts):
        monkeypatch.setattr(module, "TOKENS_AT_ONCE", 50)
    found.update(tokens)
    drift.update(tokens, tokens.roll(1, dims=0), tokens)
    assert found.tokens == drift.tokens == len(tokens) == 192
    double, scale = tokens.double(), tokens.double().square().sum(dim=0).sqrt()
    bound = 1e-5 * scale[:, None] * scale
    assert ((found.value.double() * 192 - double.t() @ double).abs() <= bound).all()
    expected = (double - double.roll(1, dims=0)).t() @ double
    assert ((drift.value.double() * 192 - expected).abs() <= bound).all()


def test_what_the_dense_model_did_not_read_counts_as_no_drift() -> None:
    """A batch of which the dense model has nothing, or other tokens, still counts with its tokens."""
    torch.manual_seed(0)
    dense, pruned, inputs = torch.randn(5, 3), torch.randn(5, 3), torch.randn(5, 4)
    drift = Drift(3, 4, CPU)
    drift.update(dense, pruned, inputs)
    drift.update(None, torch.randn(2, 3), torch.randn(2, 4))
    drift.update(torch.randn(4, 3), torch.randn(3, 3), torch.randn(3, 4))
    torch.testing.assert_close(drift.value, (dense - pruned).t() @ inputs / (5 + 2 + 3))


def test_a_drift_in_half_precision_is_that_of_wider_numbers() -> None:
    torch.manual_seed(0)
    dense, pruned, inputs = (torch.randn(50, size).bfloat16() for size in (3, 3, 4))
    drift = Drift(3, 4, CPU)
    drift.update(dense, pruned, inputs)
    expected = (dense.double() - pruned.double()).t() @ inputs.double() / 50
    torch.testing.assert_close(drift.value.double(), expected, rtol=1e-5, atol=1e-6)


def test_each_damping_and_penalty_has_an_inverse_of_its_own() -> None:
    """Though they are computed once for all layers that share the input."""
    statistic = gram([torch.randn(60, 8, generator=torch.Generator().manual_seed(0))])
    for damping in (0.01, 0.5):
        assert statistic.factor(damping) is statistic.factor(damping)
        upper = statistic.factor(damping).upper
        damped = statistic.value + damping * statistic.value.diagonal().mean() * torch.eye(8)
        torch.testing.assert_close(upper.t() @ upper @ damped, torch.eye(8), rtol=0, atol=1e-4)
        for penalty in (1.0, 3.0):
            inverse = statistic.normalised_inverse(damping, penalty)
            assert inverse is statistic.normalised_inverse(damping, penalty)
            norms = statistic.mean_square.sqrt()
            matrix = statistic.value / norms / norms[:, None] + (damping + penalty) * torch.eye(8)
            torch.testing.assert_close(inverse.inverse @ matrix, torch.eye(8), rtol=0, atol=1e-4)
