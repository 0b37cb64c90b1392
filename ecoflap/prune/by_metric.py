"""Pruners that keep the weights of the largest metric."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor
from typing_extensions import override

from ecoflap.blocks.containers import version_of
from ecoflap.blocks.statistics import Statistic
from ecoflap.errors import UserError
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

    def checked_metric(self, weight: Tensor, statistic: Statistic | None) -> Tensor:
        """``metric``, refused if it can't rank the weights, or if they are changed by its computation.

        Raises:
            UserError: if it is no matrix of real numbers like the weight, or the weight is changed.
        """
        version = version_of(weight)
        metric: object = self.metric(weight, statistic)
        if not isinstance(metric, Tensor):
            raise self._misfit(type(metric).__name__, weight)
        if metric.shape != weight.shape or metric.dtype == torch.bool or metric.is_complex():
            raise self._misfit(f"a tensor {list(metric.shape)} of {metric.dtype}", weight)
        if version_of(weight) != version:
            raise UserError(
                f"pruner={self.name} changed the weight that its metric is of, such as by abs_(), and with it"
                " the weights that are kept; correct the pruner: compute on a copy, as abs() does"
            )
        return metric

    def _misfit(self, found: str, weight: Tensor) -> UserError:
        return UserError(
            f"pruner={self.name} returned {found} as the metric of a weight {list(weight.shape)}; correct the"
            " pruner: its metric is a tensor of this shape, of real numbers"
        )

    @override
    def __call__(self, weight: Tensor, statistic: Statistic | None, keep: Keep) -> Pruned:
        mask = self.rule.select(self.checked_metric(weight, statistic), keep)
        return Pruned(weight * mask, mask)
