"""RIA (Zhang et al., ICLR 2024): remove the weights of smallest share in their row and in their column.

The paper's permutation of channels for N:M masks is not part of it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor
from typing_extensions import override

from ecoflap.blocks.gram import Gram
from ecoflap.blocks.statistics import MeanSquare, Statistic
from ecoflap.errors import UserError
from ecoflap.ops import ria_metric
from ecoflap.prune.options import RIAOptions
from ecoflap.prune.refined import RefinedMetric


@dataclass(frozen=True)
class RIA(RIAOptions, RefinedMetric):
    """Remove the weights of smallest share in their row and column, times a power of their input's norm."""

    of_metric: ClassVar[type[Statistic] | None] = MeanSquare
    solves_rows: ClassVar[bool] = False  # columns are summed

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (math.isfinite(self.power) and self.power >= 0):
            raise UserError(
                f"pruner.power={self.power} must be a number of at least 0, such as the published 0.5"
            )

    @override
    def metric(self, weight: Tensor, statistic: Statistic | None) -> Tensor:
        """``(|w| / sum of its column + |w| / sum of its row) ||x||^power``."""
        assert isinstance(statistic, MeanSquare | Gram)
        return ria_metric(weight, statistic.mean_square, self.power)
