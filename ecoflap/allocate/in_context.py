"""In-context allocation: move sparsity to where the pruned model loses least by it.

The marginals of all layers (see ``marginals``) are measured at the pruned model, sparsities take a small step
down them at a constant budget, and the model is pruned again. A ramp raises the budget to the target, as the
marginals of a model that uniform pruning has broken say little. The same backward passes say how the rows of
a layer share its count (see ``row_weights``). Derivation: docs/in_context.md;
figures: docs/in_context_results.md.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from typing_extensions import override

from ecoflap.allocate.allocation import Allocation, check_sparsity
from ecoflap.allocate.budget_search import BudgetSearch, Candidate
from ecoflap.allocate.options import InContextOptions
from ecoflap.allocate.protocol import Allocator, Context, Requires
from ecoflap.allocate.row_weights import RowWeights
from ecoflap.allocate.sparsity_groups import ROW
from ecoflap.allocate.trial import LazyTrial
from ecoflap.blocks.footprint import Footprint
from ecoflap.console.progress import track
from ecoflap.errors import UserError, require_positive
from ecoflap.models.core.prunable import PrunableModel
from ecoflap.prune.protocol import LayerPruner
from ecoflap.score.scores import Scores, loss_is_independent

HIGHEST = 0.98
"""The largest sparsity of a layer, block or row, before counts are rounded."""
CANDIDATES = 4
"""At most: allocations of which the loss on all samples decides."""


@dataclass(frozen=True)
class Step:
    """One step of the ramp.

    Attributes:
        budget: the sparsity of the whole model.
        turn: how many steps came before, which decides on the samples.
        rate: half of the largest change of a sparsity.
    """

    budget: float
    turn: int
    rate: float


@dataclass(frozen=True)
class InContext(InContextOptions, Allocator):
    """Move sparsity to where the pruned model loses least by it."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.granularity == ROW and self.rows == "weighted":
            raise UserError(
                "allocation.granularity=row gives each row a sparsity of its own, allocation.rows=weighted"
                " shares the sparsity of a layer among its rows; leave out one of them"
            )
        require_positive("allocation", self, "samples", "batch_size", "steps", "ramp_steps")
        for name in ("ramp_start", "ramp_width", "rate", "band"):
            if not 0 < getattr(self, name) < 1:
                raise UserError(f"allocation.{name}={getattr(self, name)} is outside (0, 1)")

    @property
    @override
    def requires(self) -> Requires:
        """No scores, as it measures the pruned model itself."""
        return Requires("none", calibration=True)

    @property
    @override
    def footprint(self) -> Footprint:
        """A backward pass beside the dense weights and the directions of all layers."""
        return Footprint("backward", layers=3, trials=2, batch_size=self.batch_size)

    @override
    def check(self, sparsity: float) -> None:
        """Refuse a target above the largest sparsity of a layer, too."""
        check_sparsity(sparsity)
        if sparsity > HIGHEST:
            raise UserError(
                f"allocation={self.name} makes no layer sparser than {HIGHEST}, and sparsity={sparsity} was"
                " asked for; use allocation=water_filling score=none"
            )

    @override
    def check_pruner(self, pruner: LayerPruner) -> None:
        """Refuse a pruner that can't give rows the counts or weights that are asked for.

        Raises:
            UserError: if rows get counts of their own and the mask is not ``row``, or weights and the pruner
                can't weigh rows.
        """
        if self.granularity == ROW:
            pruner.rule.require("row")
        if (self.granularity == ROW or self.rows == "weighted") and not pruner.weighs_rows:
            raise UserError(
                f"allocation.rows={self.rows} allocation.granularity={self.granularity}: pruner={pruner.name}"
                f" pruner.mask={pruner.rule.name} can't weigh the rows of a layer; use pruner.mask=row, or"
                " matrix (sparsegpt, wanda, admm or magnitude), or"
                " allocation.granularity=layer allocation.rows=even"
            )

    def _weighs_rows(self, pruner: LayerPruner) -> bool:
        """Whether the rows of a layer share its count by their weights."""
        wanted = self.rows == "weighted" or (self.rows == "auto" and pruner.weighs_rows)
        return wanted and self.granularity != ROW

    @override
    def passes(self, samples: int, sparsity: float) -> float:
        """In forward passes: three for a step's gradients, one for the statistics, one for each candidate."""
        in_steps = 3 * len(self.steps_to(sparsity)) * min(samples, self.samples)
        return in_steps + (1 + CANDIDATES) * samples

    @override
    def __call__(
        self,
        model: PrunableModel,
        scores: Scores | None,
        sparsity: float,
        context: Context | None = None,
    ) -> Allocation:
        self.check(sparsity)
        assert context is not None
        with LazyTrial(model, context) as trial:
            weigh_rows = self._weighs_rows(context.pruner)
            search = BudgetSearch(self, model, context, trial, HIGHEST, weigh_rows)
            chosen, losses = self._search(search, sparsity)
            counts = search.counts(chosen)
            of_rows = search.of_rows(counts, chosen.row_weights)
        return Allocation(
            {name: int(torch.as_tensor(count).sum()) for name, count in counts.items()},
            model.sizes,
            sparsity,
            self.granularity,
            details={"losses": losses},
            in_trials=True,
            **of_rows,
        )

    def _search(self, search: BudgetSearch, sparsity: float) -> tuple[Candidate, dict[str, float]]:
        """Take all steps to a target; the best candidate, and the loss of each.

        Raises:
            UserError: if the loss depends on none of the layers.
        """
        uniform = Candidate(search.uniform(sparsity), RowWeights(), sparsity)
        if search.decided(sparsity):
            return uniform, {}
        steps = self.steps_to(sparsity)
        point, visited = search.uniform(steps[0].budget), []
        for step in track(steps, "allocate", total=len(steps)):
            point = search.shifted(point, step.budget)
            visited.append((step, point))
            point = search.step(point, step.budget, step.turn, step.rate)
        if not search.informed:
            raise loss_is_independent()
        at_target = [point for step, point in visited if step.budget == sparsity]
        mean = search.shifted(torch.stack([*at_target[len(at_target) // 2 :], point]).mean(dim=0), sparsity)
        weights = search.row_weights
        candidates = {
            "last": Candidate(point, weights, sparsity),
            "mean": Candidate(mean, weights, sparsity),
            "uniform": uniform,
        }
        if weights.known:  # a pruner that makes up for what it removes may be better off with even rows
            candidates["even"] = Candidate(point, RowWeights(), sparsity)
        return search.best(candidates)

    def steps_to(self, sparsity: float) -> list[Step]:
        """The steps to a target; two targets share those of their ramps."""
        falls = [(budget, 0.0) for budget in self._ramp(sparsity) for _ in range(self.ramp_steps)]
        falls += [(sparsity, number / max(1, self.steps - 1)) for number in range(self.steps)]
        return [Step(budget, turn, self.rate * 3**-fall) for turn, (budget, fall) in enumerate(falls)]

    def _ramp(self, sparsity: float) -> list[float]:
        budgets: list[float] = []
        while (budget := round(self.ramp_start + len(budgets) * self.ramp_width, 10)) < sparsity:
            budgets.append(budget)
        return budgets
