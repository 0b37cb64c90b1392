"""SparseGPT (Frantar and Alistarh 2023): the kept weights compensate for the error of the removed ones."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor
from typing_extensions import override

from ecoflap.blocks.gram import Gram
from ecoflap.blocks.statistics import Statistic
from ecoflap.errors import UserError, require_positive
from ecoflap.ops import Keep, Part, Solution, sparsegpt_solve
from ecoflap.prune.masks import MaskRule
from ecoflap.prune.options import SparseGPTOptions
from ecoflap.prune.protocol import LayerPruner, Pruned


@dataclass(frozen=True)
class SparseGPT(SparseGPTOptions, LayerPruner):
    """Remove weights and correct the ones that stay."""

    statistic: ClassVar[type[Statistic] | None] = Gram
    solves_rows: ClassVar[bool] = True

    def __post_init__(self) -> None:
        require_positive("pruner", self, "block")
        if not (math.isfinite(self.damping) and self.damping >= 0):
            raise UserError(
                f"pruner.damping={self.damping} must be a finite number of at least 0 (published: 0.01)"
            )
        _ = self.rule

    @property
    @override
    def rule(self) -> MaskRule:
        return MaskRule.parse(self.mask, ("matrix",))

    @property
    @override
    def weighs_rows(self) -> bool:
        """Yes, but for N:M."""
        return self.rule.unstructured

    @override
    def __call__(self, weight: Tensor, statistic: Statistic | None, keep: Keep) -> Pruned:
        return self.together([weight], statistic, [keep])[0]

    @override
    def together(
        self,
        weights: Sequence[Tensor],
        statistic: Statistic | None,
        keeps: Sequence[Keep],
        parts: Sequence[Part] | None = None,
    ) -> list[Pruned]:
        """Prune them as one matrix of all their rows."""
        assert isinstance(statistic, Gram)
        factor = statistic.factor(self.damping)
        parts = Part.each(weights, parts)
        patterns = self.rule.patterns(weights, keeps, parts)
        solutions: dict[int, Solution] = {}
        for pattern in dict.fromkeys(patterns):  # one, unless layers have an n of their own
            places = [place for place, other in enumerate(patterns) if other == pattern]
            solved = sparsegpt_solve(
                [weights[place] for place in places],
                factor,
                [int(keeps[place]) for place in places],
                pattern,
                self.block,
                parts=[parts[place] for place in places],
            )
            solutions |= dict(zip(places, solved, strict=True))
        note = None
        if factor.damping > self.damping:
            note = f"damping raised from {self.damping:g} to {factor.damping:g}"
        return [Pruned(solutions[place].weight, solutions[place].mask, note) for place in range(len(weights))]
