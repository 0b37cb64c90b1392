"""Sums of squares that do not depend on the order in which batches are added."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

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


def nearest(batches: list[Tensor]) -> Tensor:
    """The sum of the batches' fp32 sums, rounded once."""
    squares = [torch.linalg.vector_norm(batch, dim=0).square().double() for batch in batches]
    return torch.stack(squares).sum(dim=0).float()


def test_the_sum_is_the_nearest_fp32_number_in_any_order(batches: list[Tensor]) -> None:
    wanted = nearest(batches)
    for seed in range(5):
        order = torch.randperm(len(batches), generator=torch.Generator().manual_seed(seed)).tolist()
        assert gathered([batches[index] for index in order]).sum.equal(wanted)


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
    assert restored.value.equal(whole.value)
    assert restored.tokens == whole.tokens


@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_an_input_that_is_not_finite_shows(batches: list[Tensor], wrong: float) -> None:
    batches[3][0, 5] = wrong
    value = gathered(batches).value
    assert not value[5].isfinite()
    assert value[:5].isfinite().all()
    assert value[6:].isfinite().all()
