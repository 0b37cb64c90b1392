"""Magnitude pruning: the smallest weights go."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ecoflap.blocks.statistics import Statistic
from ecoflap.prune.by_metric import ByMetric


@dataclass(frozen=True)
class Magnitude(ByMetric):
    """Remove the smallest weights by absolute value; looks at no data.

    Attributes:
        mask: matrix, row or N:M.
        name: shown in logs and written to result files.
    """

    mask: str = "matrix"
    name: str = "magnitude"

    def metric(self, weight: Tensor, statistic: Statistic | None) -> Tensor:
        """``|w|``."""
        return weight.float().abs()
