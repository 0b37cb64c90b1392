"""In-context allocation: move sparsity to where the pruned model loses least by it.

The marginals of all layers (see ``marginals``) are measured at the pruned model, sparsities take a small step
down them at a constant budget, and the model is pruned again. A ramp raises the budget to the target, as the
marginals of a model that is broken by uniform pruning say little.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor

from ecoflap.allocate.allocation import Allocation, check_sparsity, keep_total
from ecoflap.allocate.marginals import Counts, measure_marginals
from ecoflap.allocate.options import InContextOptions
from ecoflap.allocate.protocol import Allocator, Context, Requires
from ecoflap.allocate.trial import TrialPruner, trial_batches, trial_pruner
from ecoflap.blocks.footprint import Footprint
from ecoflap.console.progress import track
from ecoflap.data.batch import Batch
from ecoflap.errors import UserError, require_choices, require_positive
from ecoflap.models.core.layers import Layer
from ecoflap.models.core.prunable import PrunableModel
from ecoflap.ops import descend, round_to_total, shift_to_budget
from ecoflap.score.scores import BLOCK, Scores

LOW, HIGH = 0.0, 0.98
"""The smallest and the largest sparsity of a group."""


@dataclass(frozen=True)
class InContext(InContextOptions, Allocator):
    """Move sparsity to where the pruned model loses least by it."""

    def __post_init__(self) -> None:
        require_choices("allocation", self)
        require_positive("allocation", self, "samples", "batch_size", "steps", "ramp_steps")
        for name in ("rate", "band", "ramp_width"):
            if not 0 < getattr(self, name) < 1:
                raise UserError(f"allocation.{name}={getattr(self, name)} is outside (0, 1)")

    @property
    def requires(self) -> Requires:
        """No scores: it measures the pruned model itself."""
        return Requires("none", calibration=True)

    @property
    def footprint(self) -> Footprint:
        """A backward pass beside the dense weights and the directions of all layers."""
        return Footprint("backward", layers=3, copies=2)

    def check(self, sparsity: float) -> None:
        """Refuse an impossible target before any work is done.

        Raises:
            UserError: if the target is outside [0, 1), or above the largest sparsity of a layer.
        """
        check_sparsity(sparsity)
        if sparsity > HIGH:
            raise UserError(
                f"allocation={self.name} with sparsity={sparsity}: no layer gets sparser than {HIGH}; use"
                " allocation=water_filling score=none"
            )

    def __call__(
        self,
        model: PrunableModel,
        scores: Scores | None,
        sparsity: float,
        context: Context | None = None,
    ) -> Allocation:
        """Decide how many weights each layer keeps.

        Raises:
            UserError: if ``check`` refuses the target.
            NumericalError: if a loss or a gradient of the pruned model is not finite.
        """
        self.check(sparsity)
        assert context is not None
        with ExitStack() as stack:
            search = _Search(self, model, context, stack)
            chosen, trace = search.run(sparsity)
            keep = search.counts(chosen, keep_total(search.layer_sizes, sparsity))
        sizes = {layer.name: layer.size for layer in model.layers}
        return Allocation(keep, sizes, sparsity, self.granularity, details={"steps": trace})

    def waypoints(self, sparsity: float) -> list[tuple[float, int]]:
        """The budgets of the ramp with the number of steps at each; those below the target are shared.

        A sweep over targets takes the steps that its ramps have in common once.
        """
        below, point = [], self.ramp_start
        while point < sparsity - 1e-9:
            below.append((point, self.ramp_steps))
            point = round(point + self.ramp_width, 10)
        return [*below, (sparsity, self.steps)]


class _Search:
    """The search for one model; it prunes nothing as long as every step was recalled."""

    def __init__(self, options: InContext, model: PrunableModel, context: Context, stack: ExitStack) -> None:
        self._options, self._model, self._context, self._stack = options, model, context, stack
        blocks = [block.layers for tower in model.towers for block in tower.blocks if block.layers]
        layers = [[layer] for layer in model.layers]
        self._groups: list[Sequence[Layer]] = list(blocks if options.granularity == BLOCK else layers)
        self._sizes = torch.tensor(
            [sum(layer.size for layer in group) for group in self._groups], dtype=torch.float64
        )
        self.layer_sizes = [layer.size for group in self._groups for layer in group]

    @cached_property
    def _trial(self) -> TrialPruner:
        return self._stack.enter_context(trial_pruner(self._model, self._context))

    @cached_property
    def _batches(self) -> Sequence[Batch]:
        samples = self._context.samples.take(self._options.samples)
        return trial_batches(self._model, samples, self._options.batch_size)

    def run(self, sparsity: float) -> tuple[Tensor, list[dict[str, Any]]]:
        """The sparsities [groups] of least loss at the target, and the steps that led there."""
        uniform = self._options.waypoints(sparsity)[0][0]
        point = torch.full((len(self._groups),), uniform, dtype=torch.float64)
        steps = [
            (budget, number) for budget, count in self._options.waypoints(sparsity) for number in range(count)
        ]
        trace: list[dict[str, Any]] = []
        found: list[tuple[float, Tensor]] = []
        for budget, number in track(steps, "allocate", total=len(steps)):
            point = self._shifted(point, budget)
            value = self._recalled(point, budget, number)
            trace.append({"budget": budget, "loss": value["loss"]})
            if budget == sparsity:
                found.append((value["loss"], point))
            point = torch.tensor(value["next"], dtype=torch.float64)
        for last in (point, self._shifted(torch.zeros_like(point), sparsity)):
            loss = self._recall({"loss_at": last.tolist()}, partial(self._loss, last))
            trace.append({"budget": sparsity, "loss": loss})
            found.append((loss, last))
        return min(found, key=lambda one: one[0] if math.isfinite(one[0]) else math.inf)[1], trace

    def _recalled(self, point: Tensor, budget: float, number: int) -> dict[str, Any]:
        name = {"budget": budget, "step": number, "sparsities": point.tolist()}
        value: dict[str, Any] = self._recall(name, partial(self._step, point, budget))
        return value

    def _recall(self, name: dict[str, Any], compute: Callable[[], Any]) -> Any:
        return self._context.recall(name, compute)

    def _step(self, point: Tensor, budget: float) -> dict[str, Any]:
        """One step: measure the marginals at some sparsities, and move down them."""
        band = self._options.band
        counts = Counts(
            self.counts(point),
            self.counts((point - band).clamp(0, 1)),
            self.counts((point + band).clamp(0, 1)),
        )
        found = measure_marginals(self._model, self._trial, counts, self._batches, self._options.recompute)
        gains, widths = [], []
        for group in self._groups:
            gains.append(sum(found.gain[layer.name] for layer in group))
            widths.append(sum(counts.more[layer.name] - counts.fewer[layer.name] for layer in group))
        marginals = torch.tensor(gains, dtype=torch.float64) / torch.tensor(widths).clamp(min=1)
        following = descend(point, marginals, self._sizes, self._options.rate)
        return {
            "loss": found.loss,
            "marginals": marginals.tolist(),
            "next": self._shifted(following, budget).tolist(),
        }

    def _loss(self, point: Tensor) -> float:
        self._trial.prune(self.counts(point))
        return self._trial.loss(self._batches)

    def _shifted(self, point: Tensor, budget: float) -> Tensor:
        return shift_to_budget(point, self._sizes, budget, LOW, HIGH)

    def counts(self, point: Tensor, total: int | None = None) -> dict[str, int]:
        """The counts of all layers at some sparsities [groups]; they add up to ``total`` if it is given."""
        exact = [
            layer.size * (1 - float(sparsity))
            for sparsity, group in zip(point, self._groups, strict=True)
            for layer in group
        ]
        names = [layer.name for group in self._groups for layer in group]
        counts = [round(count) for count in exact]
        if total is not None:
            counts = round_to_total(exact, self.layer_sizes, total)
        return dict(zip(names, counts, strict=True))
