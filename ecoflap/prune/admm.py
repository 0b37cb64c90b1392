"""ADMM (Boža, TMLR 2024): weights go in steps, and the ones that stay adapt to each."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from torch import Tensor
from typing_extensions import override

from ecoflap.blocks.footprint import Footprint
from ecoflap.blocks.gram import Gram
from ecoflap.blocks.statistics import Statistic
from ecoflap.errors import UserError, require_positive
from ecoflap.ops import Keep, Part, admm_solve
from ecoflap.prune.masks import MaskRule
from ecoflap.prune.options import ADMMOptions
from ecoflap.prune.protocol import LayerPruner, Pruned


@dataclass(frozen=True)
class ADMM(ADMMOptions, LayerPruner):
    """Remove weights in steps, between which the ones that stay adapt."""

    statistic: ClassVar[type[Statistic] | None] = Gram
    solves_rows: ClassVar[bool] = True

    def __post_init__(self) -> None:
        require_positive("pruner", self, "iterations", "schedule", "trial_iterations")
        if self.schedule > self.iterations:
            raise UserError(
                f"pruner.schedule={self.schedule} with pruner.iterations={self.iterations}: at most all"
                " iterations remove weights"
            )
        finite = math.isfinite(self.damping) and math.isfinite(self.penalty)
        if not (finite and self.damping >= 0 and self.penalty > 0 and 1 <= self.relaxation < 2):
            raise UserError(
                f"pruner.damping={self.damping}, pruner.penalty={self.penalty},"
                f" pruner.relaxation={self.relaxation}: damping is at least 0, penalty above 0 and"
                " relaxation from 1 to below 2 (published: 0.1, 1 and 1)"
            )
        _ = self.rule

    @property
    @override
    def rule(self) -> MaskRule:
        return MaskRule.parse(self.mask, ("row", "matrix"))

    @property
    @override
    def weighs_rows(self) -> bool:
        """Yes, but for N:M."""
        return self.rule.unstructured

    @property
    @override
    def for_trials(self) -> ADMM:
        """The same with fewer iterations: they tell layers apart as well, in a fraction of the time."""
        iterations = min(self.trial_iterations, self.iterations)
        schedule = max(1, round(self.schedule * iterations / self.iterations))
        return replace(self, iterations=iterations, schedule=schedule)

    @property
    @override
    def footprint(self) -> Footprint:
        """Six copies of the weights, and of another layer's that share an input."""
        return Footprint("blocks", statistic=self.statistic, layers=12)

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
        inverse = statistic.normalised_inverse(self.damping, self.penalty)
        parts = Part.each(weights, parts)
        solutions = admm_solve(
            weights,
            inverse,
            keeps,
            self.rule.patterns(weights, keeps, parts),
            self.iterations,
            self.schedule,
            self.relaxation,
            parts,
        )
        return [Pruned(solution.weight, solution.mask) for solution in solutions]
