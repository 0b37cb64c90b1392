"""ECoFLaP's allocation rule, with exact totals: from scores to one sparsity per group, and to its layers.

A cap on sparsity makes each group keep a floor of its weights. The rest of the budget is shared in proportion
to the groups' scores: keep_g = min(N_g, floor_g + lambda S_g).
"""

from __future__ import annotations

from dataclasses import dataclass

from typing_extensions import override

from ecoflap.allocate.allocation import Allocation, check_sparsity, keep_total
from ecoflap.allocate.groups import group_layers, layers_of, parts, size_of, split, split_all
from ecoflap.allocate.options import WaterFillingOptions
from ecoflap.allocate.protocol import Allocator, Context, Requires, check_scores
from ecoflap.errors import UserError
from ecoflap.models.core.prunable import PrunableModel
from ecoflap.models.core.towers import Tower
from ecoflap.ops import water_fill
from ecoflap.score.scores import GRANULARITIES, Scores

MODEL = "model"


@dataclass(frozen=True)
class WaterFilling(WaterFillingOptions, Allocator):
    """Share the budget by score; uniform where there are no scores."""

    @property
    @override
    def requires(self) -> Requires:
        """Optional scores, of its groups or of parts of them."""
        known = (*GRANULARITIES, MODEL)
        finer = known[: known.index(self.granularity) + 1]
        return Requires("optional", granularities=tuple(name for name in finer if name != MODEL))

    @override
    def check(self, sparsity: float) -> None:
        """Refuse a target above the cap, too."""
        check_sparsity(sparsity)
        if self.cap is not None and not sparsity <= self.cap <= 1:
            raise UserError(
                f"allocation.cap={self.cap} with sparsity={sparsity}: the cap is the largest sparsity of any"
                " group, between sparsity and 1"
            )

    @override
    def __call__(
        self,
        model: PrunableModel,
        scores: Scores | None,
        sparsity: float,
        context: Context | None = None,
    ) -> Allocation:
        """Decide by the scores; refuse a budget whose scores are all zero."""
        self.check(sparsity)
        check_scores(self, scores)
        granularity = self.granularity if scores is not None else MODEL
        keep: dict[str, int] = {}
        for part in parts(model, self.scope):
            layers = layers_of(part)
            total = keep_total([layer.size for layer in layers], sparsity)
            # A cap at the target leaves nothing to share.
            if scores is None or granularity == MODEL or self.cap == sparsity:
                keep |= split(layers, total)
            else:
                keep |= self._share(part, scores, total, sparsity)
        return Allocation(keep, model.sizes, sparsity, granularity)

    def _share(
        self, towers: tuple[Tower, ...], scores: Scores, total: int, sparsity: float
    ) -> dict[str, int]:
        """Divide a budget among the groups of some towers by score, and within each group evenly."""
        groups, scored = group_layers(towers, self.granularity), scores.by_layer(towers)
        sizes = [size_of(group) for group in groups]
        parts = [dict.fromkeys(scored[layer.name] for layer in group) for group in groups]
        values = [sum(scores.importance[name] for name in names) for names in parts]
        if self.aggregate == "average":
            values = [value / size for value, size in zip(values, sizes, strict=True)]
        if not any(values):
            raise UserError(
                f"all scores are zero, from {groups[0][0].name} on: the loss does not depend on these layers."
                " One that compares samples needs score.batch_size=2 or more; score=none gives a uniform"
                " sparsity"
            )
        cap = self.cap if self.cap is not None else min(1.0, sparsity + 0.1)
        try:
            kept = water_fill(sizes, values, total, cap)
        except ValueError as error:
            raise UserError(f"allocation.cap={self.cap} with sparsity={sparsity}: {error}") from None
        return split_all(groups, kept)
