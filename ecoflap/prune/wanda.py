"""Wanda (Sun et al. 2024): remove the weights of smallest |w| times the norm of their input."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor
from typing_extensions import override

from ecoflap.blocks.gram import Gram
from ecoflap.blocks.statistics import MeanSquare, Statistic
from ecoflap.ops import wanda_metric
from ecoflap.prune.options import WandaOptions
from ecoflap.prune.refined import RefinedMetric


@dataclass(frozen=True)
class Wanda(WandaOptions, RefinedMetric):
    """Remove the weights of smallest |w| times the norm of their input column."""

    of_metric: ClassVar[type[Statistic] | None] = MeanSquare

    @override
    def metric(self, weight: Tensor, statistic: Statistic | None) -> Tensor:
        """``|w| ||x||``, with x the weight's input column."""
        assert isinstance(statistic, MeanSquare | Gram)
        return wanda_metric(weight, statistic.mean_square)
