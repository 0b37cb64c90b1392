"""Pruners that keep the weights of the largest metric."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass

from torch import Tensor
from typing_extensions import override

from ecoflap.blocks.statistics import Statistic
from ecoflap.ops import Keep
from ecoflap.prune.masks import MaskRule
from ecoflap.prune.protocol import LayerPruner, Pruned


@dataclass(frozen=True)
class ByMetric(LayerPruner):
    """Keep the weights of the largest metric; a subclass defines the metric.

    Attributes:
        mask: which weights compete: matrix, row or N:M.
    """

    mask: str

    def __post_init__(self) -> None:
        _ = self.rule

    @property
    @override
    def rule(self) -> MaskRule:
        return MaskRule.parse(self.mask, ("row", "matrix"))

    @property
    @override
    def corrects(self) -> bool:
        """No: kept weights stay as they are."""
        return False

    @property
    @override
    def weighs_rows(self) -> bool:
        """By counts alone, as a metric of rows times factors may be anything."""
        return self.rule.by_row

    @abstractmethod
    def metric(self, weight: Tensor, statistic: Statistic | None) -> Tensor:
        """The metric of each weight, [rows, cols].

        Args:
            weight: [rows, cols].
            statistic: of the layer's inputs; None if the pruner gathers none.
        """

    @override
    def __call__(self, weight: Tensor, statistic: Statistic | None, keep: Keep) -> Pruned:
        mask = self.rule.select(self.metric(weight, statistic), keep)
        return Pruned(weight * mask, mask)
