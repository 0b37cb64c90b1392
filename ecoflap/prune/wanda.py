"""Wanda (Sun et al. 2024): remove the weights of smallest |w| times the norm of their input."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ecoflap.blocks.statistics import MeanSquare, Statistic
from ecoflap.ops import wanda_metric
from ecoflap.prune.by_metric import ByMetric
from ecoflap.prune.options import WandaOptions


@dataclass(frozen=True)
class Wanda(WandaOptions, ByMetric):
    """Remove the weights of smallest |w| times the norm of their input column."""

    statistic: ClassVar[type[Statistic] | None] = MeanSquare

    def metric(self, weight: Tensor, statistic: Statistic | None) -> Tensor:
        """``|w| ||x||``, with x the weight's input column."""
        assert isinstance(statistic, MeanSquare)
        return wanda_metric(weight, statistic.value)
