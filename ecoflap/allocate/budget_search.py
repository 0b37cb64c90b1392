"""Steps of sparsities at a constant budget, measured at the pruned model and recalled from earlier runs."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ecoflap.allocate.allocation import keep_total
from ecoflap.allocate.marginals import Counts, measure_marginals
from ecoflap.allocate.options import InContextOptions
from ecoflap.allocate.protocol import Context
from ecoflap.allocate.row_weights import CORRECTED, RowWeights
from ecoflap.allocate.sparsity_groups import ROW, LayerGroups, RowGroups, SparsityGroups
from ecoflap.allocate.trial import LazyTrial
from ecoflap.blocks.loss_batches import batching
from ecoflap.data.batch import Batch
from ecoflap.data.calibration_set import CalibrationSet
from ecoflap.errors import NumericalError
from ecoflap.models.core.prunable import PrunableModel
from ecoflap.ops import Keep, descend, shift_to_budget

TOLERANCE = 1e-9
"""By how much a target may pass the largest sparsity of a mask, as in the mask's own check of the target."""


class Candidate(NamedTuple):
    """What a model is pruned to.

    Attributes:
        sparsities: of the groups, [groups].
        row_weights: by which the rows of a layer share its count; empty if they share it evenly.
        budget: the sparsity of all groups together, which decides how sparsities are rounded to counts.
    """

    sparsities: Tensor
    row_weights: RowWeights
    budget: float


class BudgetSearch:
    """The groups of a model, their sparsities [groups], and steps of these.

    It prunes nothing as long as every step is recalled.

    Attributes:
        groups: what shares one sparsity.
        row_weights: of all steps so far; empty if the rows of a layer share its count evenly.
        informed: whether the loss of any step so far depends on a layer.
    """

    def __init__(
        self,
        options: InContextOptions,
        model: PrunableModel,
        context: Context,
        trial: LazyTrial,
        highest: float,
        weigh_rows: bool,
    ) -> None:
        """Group the layers.

        Args:
            options: granularity, samples and band.
            model: dense.
            context: the run that is allocated for.
            trial: prunes the model.
            highest: the largest sparsity of a group.
            weigh_rows: whether steps weigh the rows.
        """
        self._options, self._model, self._context = options, model, context
        self._trial, varying = trial, context.pruner.rule.varying
        self._weigh_rows, self.informed = weigh_rows, False
        self.row_weights = RowWeights(CORRECTED if context.pruner.corrects else 1.0)
        # A mask n:M keeps at least one of every M weights.
        self._highest = min(highest, 1 - 1 / varying + TOLERANCE) if varying else highest
        self.groups: SparsityGroups = (
            RowGroups(model)
            if options.granularity == ROW
            else LayerGroups(model, options.granularity, varying)
        )

    def decided(self, budget: float) -> bool:
        """Whether a budget leaves nothing to decide: all weights, or as few as every group can have."""
        return budget == 0 or budget >= self._highest - 2 * TOLERANCE

    def uniform(self, budget: float) -> Tensor:
        """The same sparsity for all groups."""
        return torch.full((len(self.groups.sizes),), budget, dtype=torch.float64)

    def shifted(self, point: Tensor, budget: float) -> Tensor:
        """Sparsities shifted to a budget, each at most ``highest``."""
        return shift_to_budget(point, self.groups.sizes, budget, self._highest)

    def step(self, point: Tensor, budget: float, turn: int, rate: float) -> Tensor:
        """Take one step, which adds to the row weights; the sparsities after it.

        Args:
            point: the sparsities now.
            budget: of all groups together, before and after.
            turn: the number of the step, which decides on the samples.
            rate: half of the largest change of a sparsity.
        """
        now = Candidate(point, self.row_weights, budget)
        found = self._context.recall({"step": turn, **_named(now)}, partial(self._measure, now, turn))
        self.row_weights.add(found["squares"])
        self.informed |= found["informed"]
        marginals = torch.tensor(found["marginals"], dtype=torch.float64)
        return self.shifted(descend(point, marginals, self.groups.sizes, rate), budget)

    def counts(self, candidate: Candidate) -> dict[str, Keep]:
        """The counts of all layers, in pruning order, which add up to the candidate's budget."""
        total = keep_total([layer.size for layer in self._model.layers], candidate.budget)
        return self.groups.counts(candidate.sparsities, total)

    def _measure(self, now: Candidate, turn: int) -> dict[str, Any]:
        """The fall of the loss per weight that each group keeps in addition, and what weighs the rows."""
        point, band = now.sparsities, self.groups.finest.clamp(min=self._options.band)
        more, fewer = (point - band).clamp(0, 1), (point + band).clamp(0, 1)
        counts = Counts(self.counts(now), *map(self.groups.counts, (more, fewer)))
        trial, recompute = self._trial.pruner, self._options.recompute
        trial.row_weights, batches = now.row_weights, self._samples(turn)
        found = measure_marginals(self._model, trial, counts, batches, recompute, self.groups.by_row)
        squares = found.squares if self._weigh_rows else {}
        return {
            "marginals": self.groups.marginals(found.gains, counts),
            "squares": {layer: _rounded(of_rows) for layer, of_rows in squares.items()},
            "informed": any(bool(one.any()) for one in (*found.gains.values(), *found.squares.values())),
        }

    def of_rows(self, counts: Mapping[str, Keep], row_weights: RowWeights) -> dict[str, Any]:
        """What an allocation says of rows, ``rows`` or ``row_weights``, if they don't share evenly.

        Args:
            counts: {layer: how many weights it keeps, or each of its rows}.
            row_weights: of the chosen candidate.
        """
        if not row_weights.known:
            return {"rows": {name: one.tolist() for name, one in counts.items() if isinstance(one, Tensor)}}
        if not self._context.pruner.rule.by_row:
            found = {name: row_weights.of(name) for name in counts}
            return {"row_weights": {name: one.tolist() for name, one in found.items() if one is not None}}
        key = {"rows": counts, "row_weights": row_weights.digest()}
        return {"rows": self._context.recall(key, partial(self._rows, counts, row_weights))}

    def _rows(self, counts: Mapping[str, Keep], row_weights: RowWeights) -> dict[str, list[int]]:
        self._trial.pruner.row_weights = row_weights
        return {name: of_rows.tolist() for name, of_rows in self._trial.pruner.rows(counts).items()}

    def _samples(self, turn: int) -> list[dict[str, Tensor]]:
        """The batches of a step: the next samples of the calibration set, from the first again at its end."""
        calibration, count = self._context.samples, min(self._options.samples, len(self._context.samples))
        places = range(turn * count, (turn + 1) * count)
        return self._batches(calibration.chosen(place % len(calibration) for place in places))

    def best(self, candidates: Mapping[str, Candidate]) -> tuple[Candidate, dict[str, float]]:
        """The candidate of least loss on all calibration samples, and the loss of each.

        Raises:
            NumericalError: if no loss is finite.
        """
        losses: dict[str, float] = {}
        for name, candidate in candidates.items():
            key = {"loss": True, **_named(candidate)}
            found = self._context.recall(key, partial(self._loss, candidate))
            losses[name] = math.inf if found is None else found
        least = min(losses, key=losses.__getitem__)
        if not math.isfinite(losses[least]):
            raise NumericalError(
                "the loss of the pruned model is not finite at any allocation; use model.dtype=float32 or"
                " bfloat16, or a smaller sparsity"
            )
        return candidates[least], losses

    def _loss(self, candidate: Candidate) -> float | None:
        """The mean loss of the pruned model; None if it is not finite."""
        self._trial.pruner.row_weights = candidate.row_weights
        return self._trial.pruner.loss_at(self.counts(candidate), self._all_batches)

    @cached_property
    def _all_batches(self) -> Sequence[Batch]:
        return self._batches(self._context.samples)

    @cached_property
    def _batches(self) -> Callable[[CalibrationSet], list[dict[str, Tensor]]]:
        """How batches are made of some samples; the model's loss is tried for it once."""
        return batching(self._model, self._context.samples, self._options.batch_size)


def _named(candidate: Candidate) -> dict[str, str]:
    """What tells a pruned model from others, in a key: sparsities and weights of rows may be millions."""
    sparsities = hashlib.sha256(candidate.sparsities.numpy().tobytes()).hexdigest()
    return {"sparsities": sparsities, "row_weights": candidate.row_weights.digest()}


def _rounded(values: Tensor) -> list[float]:
    """Numbers with four significant digits: there are as many as rows, and none needs more."""
    return [float(f"{value:.4g}") for value in values.tolist()]
