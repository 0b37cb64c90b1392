"""Mistakes in pruners and statistics of the user's own are named, and change nothing silently."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
from torch import Tensor

from ecoflap.blocks.statistics import MeanSquare, Statistic
from ecoflap.errors import NumericalError
from ecoflap.prune.by_metric import ByMetric
from ecoflap.prune.driver import prune
from ecoflap.prune.protocol import LayerPruner
from tests import tiny

from .test_families import uniform


def wanda(weight: Tensor, statistic: MeanSquare) -> Tensor:
    return weight.float().abs() * statistic.value.sqrt()


@dataclass(frozen=True)
class Own(ByMetric):
    """Wanda with a metric of the user's own."""

    mask: str = "row"
    compute: Callable[[Tensor, Any], Any] = wanda
    of: type[Statistic] = MeanSquare
    name: str = "own"

    @property
    def statistic(self) -> type[Statistic]:
        return self.of

    def metric(self, weight: Tensor, statistic: Statistic | None) -> Tensor:
        found: Tensor = self.compute(weight, statistic)
        return found


def pruned(pruner: LayerPruner, propagate: str = "pruned") -> None:
    model = tiny.build("llama")
    prune(model, tiny.samples("llama"), pruner, uniform(model), 2, propagate=propagate)


def test_a_bug_in_a_metric_keeps_its_traceback() -> None:
    """Python's own ValueError is not mistaken for a refusal of the selection."""

    def unpacking(weight: Tensor, _: MeanSquare) -> Tensor:
        rows, _cols = (*weight.shape, 1)
        return weight.float() + rows

    with pytest.raises(ValueError, match="too many values to unpack") as caught:
        pruned(Own(compute=unpacking))
    assert caught.traceback[-1].name == "unpacking"
    with pytest.raises(NumericalError, match=r"q_proj\.weight: 256 of 256 scores are NaN"):
        pruned(Own(compute=lambda weight, _: weight * float("nan")))
