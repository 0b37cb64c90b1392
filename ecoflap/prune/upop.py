"""UPop (Shi et al., ICML 2023): structured pruning that searches while it trains, and leaves smaller
matrices.

Each attention dimension and each hidden unit of an MLP has a multiplier xi, 1 at first. The weights are
trained on the task with the multipliers in place; the multipliers are not trained, but their gradients are
summed up. At the t-th of T updates the gradients are standardised among attentions and among MLPs, and of the
units with the largest ones (those that the loss would most like to see smaller), as many as make up

    pi_t = p sqrt((1 - cos(pi (t + 1) / T)) / 2)

of the weights get xi = 1 - pi_t / p, and all others xi = 1. After the last update xi is 0 or 1, and the zeros
are cut away: progressive, and over all towers at once. Retraining is the run's finetune step.

Two things differ from the authors' code. A unit counts with the number of its weights, so that ``sparsity``
is the share of prunable weights as with every other pruner (their attention dimension counts as 36 MLP units,
of 12 heads and three projections). And there is no option for their penalty w |xi|: its gradient is the same
w for every positive xi of a kind, and standardising takes it out again.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, distributed
from torch.utils.data import DataLoader

from ecoflap.allocate.allocation import UNITS, Allocation
from ecoflap.console.progress import track
from ecoflap.data.calibration_set import CalibrationSet
from ecoflap.errors import NumericalError, UserError, require_positive
from ecoflap.finetune.learner import Learner
from ecoflap.finetune.training_set import Collator, TrainingSet
from ecoflap.models.core.prunable import PrunableModel, in_float32
from ecoflap.models.core.units import Units, cut_all, find_units, total_cost
from ecoflap.prune.options import UPopOptions
from ecoflap.prune.protocol import ModelPruner, OnBlock
from ecoflap.prune.report import BlockReport, PruneReport

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class UPop(UPopOptions, ModelPruner):
    """Search and cut; the training split behind the calibration set is searched on."""

    trains: ClassVar[bool] = True

    def __post_init__(self) -> None:
        require_positive("pruner", self, "steps", "interval", "batch_size")
        if self.interval > self.steps:
            raise UserError(
                f"pruner.interval={self.interval} is more than pruner.steps={self.steps}: no multiplier would"
                " ever change"
            )
        if not self.learning_rate > 0:
            raise UserError(f"pruner.learning_rate={self.learning_rate} must be above 0")
        if self.weight_decay < 0:
            raise UserError(f"pruner.weight_decay={self.weight_decay} must be at least 0")

    def prune(
        self, model: PrunableModel, calibration: CalibrationSet | None, sparsity: float, on_block: OnBlock
    ) -> tuple[Allocation, PruneReport]:
        """Search and cut, in place.

        Raises:
            UserError: the model is no BLIP of transformers, or several processes would search at once.
            NumericalError: a loss is NaN or infinite.
        """
        assert calibration is not None
        if distributed.is_initialized():
            raise UserError(
                f"pruner={self.name} searches in one process, and would find another model in each; start it"
                " without torchrun"
            )
        started, sizes = time.perf_counter(), {layer.name: layer.size for layer in model.layers}
        units = find_units(model)
        with in_float32(model.module):
            gates = self._search(model, calibration, units, sparsity)
        cut_all(model.module, units, [gate.nonzero().flatten() for gate in gates])
        masks = {layer.name: torch.ones(layer.weight.shape, dtype=torch.bool) for layer in model.layers}
        allocation = Allocation(
            {layer.name: layer.size for layer in model.layers}, sizes, sparsity, "model", UNITS
        )
        report = PruneReport(masks, dict.fromkeys(masks))
        for tower in model.towers:
            for block in tower.blocks:
                removed = allocation.sparsity_of([layer.name for layer in block.layers])
                report.blocks.append(
                    BlockReport(tower.name, block.name, removed, None, time.perf_counter() - started)
                )
                on_block(report.blocks[-1])
        return allocation, report

    def _search(
        self, model: PrunableModel, samples: CalibrationSet, units: Sequence[Units], sparsity: float
    ) -> list[Tensor]:
        """Train with the multipliers in place; returns the last ones, each 0 or 1."""
        gates = [torch.ones(one.count, device=model.device, requires_grad=True) for one in units]
        updates = self.steps // self.interval
        learner = Learner(model)
        optimizer = torch.optim.AdamW(
            model.module.parameters(), lr=self.learning_rate, weight_decay=self.weight_decay
        )
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.steps)
        with ExitStack() as stack:
            stack.callback(model.module.eval)
            for one, gate in zip(units, gates, strict=True):
                stack.enter_context(one.gated(gate))
            model.module.train()
            for step, batch in enumerate(
                track(self._batches(model, samples), "search", total=self.steps), start=1
            ):
                loss = learner(**batch)
                if not torch.isfinite(loss):
                    raise NumericalError(
                        f"the loss is {loss.item()} at step {step} of the search; use a smaller"
                        " pruner.learning_rate"
                    )
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()
                schedule.step()
                if step % self.interval == 0 and step // self.interval <= updates:
                    share = progress(step // self.interval - 1, updates)
                    update(gates, units, share * sparsity, share)
                    log.info(
                        "search     step %d of %d  loss %.4g  units going: %.3f of the weights",
                        step,
                        self.steps,
                        loss.item(),
                        share * sparsity,
                    )
        return [gate.detach() for gate in gates]

    def _batches(self, model: PrunableModel, samples: CalibrationSet) -> Iterator[dict[str, Any]]:
        """As many batches as there are steps, the samples in their drawn order, again and again."""
        loader = DataLoader(TrainingSet(samples.samples), self.batch_size, collate_fn=Collator(model))
        made = 0
        while True:
            for batch in loader:
                if made == self.steps:
                    return
                made += 1
                yield batch


def progress(update: int, updates: int) -> float:
    """pi_t / p of the ``update``-th of ``updates``, from 0: rises to 1, slowly at the end."""
    return math.sqrt((1 - math.cos(math.pi * (update + 1) / updates)) / 2)


@torch.no_grad()
def update(gates: Sequence[Tensor], units: Sequence[Units], removed: float, share: float) -> None:
    """Set the multipliers anew from the gradients that were summed up since the last time, and forget those.

    Args:
        gates: multipliers of each attention and MLP, [units] each, with gradients.
        units: what they belong to.
        removed: share of the weights whose units are on their way out.
        share: how far on their way they are, from 0 to 1.
    """
    scores = standardised(
        [gate.grad if gate.grad is not None else torch.zeros_like(gate) for gate in gates],
        [one.kind for one in units],
    )
    for gate, going in zip(gates, choose(scores, units, removed), strict=True):
        gate.copy_(torch.where(going, 1 - share, 1.0))
        gate.grad = None


def standardised(gradients: Sequence[Tensor], kinds: Sequence[str]) -> list[Tensor]:
    """Gradients less their mean and divided by their deviation, among those of one kind."""
    result: list[Tensor] = []
    for gradient, kind in zip(gradients, kinds, strict=True):
        alike = torch.cat([other for other, its in zip(gradients, kinds, strict=True) if its == kind])
        result.append((gradient - alike.mean()) / alike.std().clamp_min(torch.finfo(alike.dtype).tiny))
    return result


def choose(scores: Sequence[Tensor], units: Sequence[Units], removed: float) -> list[Tensor]:
    """Which units go, bool [units] each: the largest scores, as many as come closest to the share ``removed``
    of the weights.

    The unit of the smallest score in each attention or MLP stays: a block without any would be another
    architecture.
    """
    safe = [torch.arange(len(score)) == int(score.argmin()) for score in scores]
    flat = torch.cat(
        [score.cpu().masked_fill(kept, -torch.inf) for score, kept in zip(scores, safe, strict=True)]
    )
    costs = torch.cat([torch.full((one.count,), one.cost) for one in units])
    order = flat.argsort(descending=True, stable=True)[: len(flat) - len(units)]
    reached = torch.cat([torch.zeros(1, dtype=torch.long), costs[order].cumsum(0)])
    count = int((reached - removed * total_cost(units)).abs().argmin())
    going = torch.zeros(len(flat), dtype=torch.bool)
    going[order[:count]] = True
    return [
        part.to(score.device)
        for part, score in zip(going.split([one.count for one in units]), scores, strict=True)
    ]
