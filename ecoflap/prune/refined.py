"""Pruners by a metric whose masks swaps can refine, and whose weights can make up for what is pruned."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from typing_extensions import override

from ecoflap.blocks.footprint import Footprint
from ecoflap.blocks.gram import Gram
from ecoflap.blocks.statistics import Statistic
from ecoflap.errors import require_choices, require_positive
from ecoflap.ops import Keep, Part, admm_repair, select_part, swap_masks
from ecoflap.prune.by_metric import ByMetric
from ecoflap.prune.options import ADMMOptions, MetricOptions
from ecoflap.prune.protocol import Pruned

REPAIR = ADMMOptions()


@dataclass(frozen=True)
class RefinedMetric(MetricOptions, ByMetric):
    """Keep the weights of the largest metric, refine the mask and repair the weights as the options say.

    Attributes:
        of_metric: the statistic that the metric alone reads; None if it looks at no data.
        solves_rows: whether the metric of a weight depends on its own row alone, and is proportional to it.
    """

    of_metric: ClassVar[type[Statistic] | None] = None
    solves_rows: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        require_choices("pruner", self)
        require_positive("pruner", self, "swaps")

    @property
    @override
    def statistic(self) -> type[Statistic] | None:
        """What the metric reads; the Gram matrix for refinement and repair."""
        return Gram if self._adapts else self.of_metric

    @property
    @override
    def corrects(self) -> bool:
        """Whether it repairs the weights that it keeps."""
        return self.repair

    @property
    @override
    def weighs_rows(self) -> bool:
        """Yes, but for N:M, if a row times a factor has its metric times the factor."""
        return self.rule.unstructured if self.solves_rows else super().weighs_rows

    @property
    def _adapts(self) -> bool:
        """Whether masks or weights change after the metric has chosen."""
        return self.refine != "none" or self.repair

    @property
    @override
    def footprint(self) -> Footprint:
        """Refinement and repair work on two layers that share an input at once."""
        return Footprint("blocks", statistic=self.statistic, layers=12 if self.statistic is Gram else 4)

    @override
    def __call__(self, weight: Tensor, statistic: Statistic | None, keep: Keep) -> Pruned:
        if not self._adapts:
            return super().__call__(weight, statistic, keep)
        return self.together([weight], statistic, [keep])[0]

    @override
    def together(
        self,
        weights: Sequence[Tensor],
        statistic: Statistic | None,
        keeps: Sequence[Keep],
        parts: Sequence[Part] | None = None,
    ) -> list[Pruned]:
        if not self._adapts:
            return super().together(weights, statistic, keeps)
        assert isinstance(statistic, Gram)
        parts = Part.each(weights, parts)
        metrics = [self.checked_metric(weight, statistic) for weight in weights]
        masks = list(map(select_part, metrics, keeps, self.rule.patterns(weights, keeps, parts), parts))
        if self.refine == "swaps":
            swapped = swap_masks(
                torch.cat(list(weights)), statistic.value, torch.cat(masks), self.swaps, self.rule.group
            )
            masks = list(swapped.split([len(weight) for weight in weights]))
        if not self.repair:
            return [Pruned(weight * mask, mask) for weight, mask in zip(weights, masks, strict=True)]
        inverse = statistic.normalised_inverse(REPAIR.damping, REPAIR.penalty)
        repaired = admm_repair(weights, inverse, masks, REPAIR.iterations, REPAIR.relaxation)
        return [Pruned(weight, mask) for weight, mask in zip(repaired, masks, strict=True)]
