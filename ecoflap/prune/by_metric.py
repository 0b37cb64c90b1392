"""Pruners that give each weight of a layer a number and keep the weights of the largest ones."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass

from torch import Tensor

from ecoflap.blocks.statistics import Statistic
from ecoflap.prune.masks import MaskRule
from ecoflap.prune.protocol import LayerPruner, Pruned


@dataclass(frozen=True)
class ByMetric(LayerPruner):
    """Keep the weights that matter most; a subclass says how much each matters.

    Attributes:
        mask: matrix, row or N:M.
    """

    mask: str

    def __post_init__(self) -> None:
        _ = self.rule

    @property
    def rule(self) -> MaskRule:
        """Which weights compete for the places of a layer."""
        return MaskRule.parse(self.mask, ("row", "matrix"))

    @abstractmethod
    def metric(self, weight: Tensor, statistic: Statistic | None) -> Tensor:
        """How much each weight of [rows, cols] matters, [rows, cols]."""

    def __call__(self, weight: Tensor, statistic: Statistic | None, keep: int) -> Pruned:
        """Prune a weight [rows, cols]."""
        mask = self.rule.select(self.metric(weight, statistic), keep)
        return Pruned(weight * mask, mask)
