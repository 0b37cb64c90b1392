"""Magnitude pruning: remove the smallest weights."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from typing_extensions import override

from ecoflap.blocks.statistics import Statistic
from ecoflap.prune.options import MagnitudeOptions
from ecoflap.prune.refined import RefinedMetric


@dataclass(frozen=True)
class Magnitude(MagnitudeOptions, RefinedMetric):
    """Remove the smallest weights by absolute value; looks at no data."""

    @override
    def metric(self, weight: Tensor, statistic: Statistic | None) -> Tensor:
        """``|w|``."""
        return weight.float().abs()
