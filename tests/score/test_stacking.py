"""Blocks in which a copy of the batch is not the rows that one would think are scored as by moving their
weights.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from ecoflap.data.batch import Batch
from ecoflap.data.calibration_set import CalibrationSet
from ecoflap.models.core.prunable import Loss
from ecoflap.score.stacking import can_stack
from ecoflap.score.zeroth_order import ZerothOrder
from tests.score.test_zeroth_order import two_forward_passes_per_probe
from tests.stack import mean_square, stack


class TokensFirst(nn.Module):
    """Its first layer reads [tokens, batch, features], as LED's attention does; its last one samples
    first.
    """

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, hidden: Tensor) -> Tensor:
        return hidden + self.last(self.first(hidden.transpose(0, 1)).transpose(0, 1).relu())


class TokensFirstAtLast(TokensFirst):
    """Its first layer reads samples first, and its last one [tokens, batch, features]."""

    def forward(self, hidden: Tensor) -> Tensor:
        return hidden + self.last(self.first(hidden).transpose(0, 1).relu()).transpose(0, 1)


class Routed(nn.Module):
    """Its expert reads the tokens that the first layer sends it, and its last layer all of them."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.expert, self.last = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, hidden: Tensor) -> Tensor:
        inside = self.first(hidden)
        chosen = inside[..., 0] > 0
        inside[chosen] = inside[chosen] + self.expert(inside[chosen])
        return hidden + self.last(inside.relu())


class Residual(nn.Module):
    """It reads rows of any shape."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, hidden: Tensor) -> Tensor:
        return hidden + self.last(self.first(hidden).relu())


def in_a_strip(module: nn.Module, batch: Batch, copies: int = 1) -> Tensor:
    """The tokens of all samples as one, [1, tokens of all, features], whose places are looked up, as in
    MiniCPM-V.
    """
    rows = batch["x"]
    hidden = rows.reshape(1, -1, 8)
    for block in module.blocks:  # type: ignore[union-attr]
        hidden = block(hidden)
    return hidden[:, torch.arange(rows.shape[:-1].numel())].view_as(rows).square().mean(dim=(1, 2))


@pytest.mark.parametrize(
    ("kind", "loss"),
    [
        (TokensFirst, mean_square),
        (TokensFirstAtLast, mean_square),
        (Routed, mean_square),
        (Residual, in_a_strip),
    ],
)
def test_equals_really_moving_the_weights(kind: type[nn.Module], loss: Loss) -> None:
    rows = torch.randn(4, 5, 8, generator=torch.Generator().manual_seed(1))
    calibration = CalibrationSet("random", tuple({"x": row} for row in rows))
    scorer = ZerothOrder(samples=4, batch_size=2, eps=0.05, noises=2)
    scores = scorer(stack(kind, kind, loss=loss), calibration, seed=3)
    expected = two_forward_passes_per_probe(stack(kind, kind, loss=loss), calibration, scorer, 3)
    assert scores.importance == pytest.approx(expected, rel=1e-3, abs=1e-4)


class Listed(nn.Module):
    """Its experts, each a module, read the tokens that are routed to them."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.experts = nn.Linear(8, 8), nn.ModuleList([nn.Linear(8, 8), nn.Linear(8, 8)])


def test_experts_that_are_modules_are_not_stacked() -> None:
    """A probe may move tokens between them, though the first ones that are tried don't."""

    def losses(*_: object) -> Tensor:
        raise AssertionError

    (tower,) = stack(Listed).towers
    assert not can_stack(tower, torch.zeros(2), losses)


def pictures_first(module: nn.Module, batch: Batch, copies: int = 1) -> Tensor:
    """Blocks read the first pictures of all samples, then the second ones: samples first where there is one
    each.
    """
    pictures = batch["x"].transpose(0, 1)
    hidden = pictures.flatten(0, 1)
    for block in module.blocks:  # type: ignore[union-attr]
        hidden = block(hidden)
    return hidden.unflatten(0, pictures.shape[:2]).square().mean(dim=(0, 2, 3))


def test_each_kind_of_batch_is_tried() -> None:
    """One picture for each of the first samples, and two for each of the last."""
    generator = torch.Generator().manual_seed(1)
    samples = [{"x": torch.randn(count, 5, 8, generator=generator)} for count in (1, 1, 2, 2)]
    calibration = CalibrationSet("random", tuple(samples))
    model = stack(Residual, Residual, loss=pictures_first)
    scorer = ZerothOrder(samples=4, batch_size=2, eps=0.05, noises=2)
    scores = scorer(model, calibration, seed=3)
    expected = two_forward_passes_per_probe(model, calibration, scorer, 3)
    assert scores.importance == pytest.approx(expected, rel=1e-3, abs=1e-4)
