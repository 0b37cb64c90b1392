"""UPop (Shi et al., ICML 2023): structured pruning by a search during training; the matrices become smaller.

Each attention dimension and each hidden unit of an MLP has a multiplier xi, at first 1. The weights are
trained on the task with the multipliers in the forward pass. The multipliers are not trained; their gradients
are accumulated. At the t-th of T updates the gradients are standardised, separately for attentions and MLPs.
The units of the largest ones (those whose shrinking lowers the loss most), which together have the share

    pi_t = p sqrt((1 - cos(pi (t + 1) / T)) / 2)

of the weights, get xi = 1 - pi_t / p, and all others xi = 1. After the last update every xi is 0 or 1, and
the units of zeros are removed. All towers are searched at once. Retraining is the run's finetune step.

Two things differ from the authors' code. A unit counts with the number of its weights, so that ``sparsity``
is the share of prunable weights, as with every other pruner (in their code, an attention dimension counts as
36 MLP units, for 12 heads and three projections). And there is no option for their penalty w |xi|: its
gradient is the same w for every positive xi of a kind, which standardising cancels.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from typing_extensions import override

from ecoflap.allocate.allocation import UNITS, Allocation
from ecoflap.blocks.footprint import Footprint
from ecoflap.console.progress import track
from ecoflap.data.calibration_set import CalibrationSet
from ecoflap.distributed.processes import size
from ecoflap.errors import NumericalError, UserError, require_positive
from ecoflap.finetune.learner import Learner
from ecoflap.finetune.training_set import Collator
from ecoflap.models.core.forward_modes import in_float32
from ecoflap.models.core.prunable import PrunableModel
from ecoflap.models.core.units import Units, cut_all, find_units, total_cost
from ecoflap.prune.options import UPopOptions
from ecoflap.prune.protocol import ModelPruner
from ecoflap.prune.report import PruneReport

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class UPop(UPopOptions, ModelPruner):
    """Search and cut; the training split behind the calibration set is searched on."""

    trains: ClassVar[bool] = True
    removes_units: ClassVar[bool] = True

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

    @property
    @override
    def footprint(self) -> Footprint:
        """A training in fp32."""
        return Footprint("backward", batch_size=self.batch_size, float32=True, trained=True)

    @override
    def check_model(self, model: PrunableModel, sparsity: float) -> None:
        """Refuse several processes, all but a BLIP of transformers, and a block that would lose all units.

        Raises:
            UserError: if ``find_units`` refuses the model, too few weights would stay, or the run has several
                processes.
        """
        if size() > 1:
            raise UserError(
                f"pruner={self.name} searches in one process, and would find another model in each; start it"
                " without torchrun"
            )
        units = find_units(model)
        most = 1 - sum(one.cost for one in units) / total_cost(units)
        if sparsity > most:
            raise UserError(
                f"sparsity={sparsity}: pruner={self.name} keeps a unit of each attention and MLP, and removes"
                f" at most {math.floor(1000 * most) / 1000} of {model.name}; choose a lower sparsity"
            )

    @override
    def prune(
        self, model: PrunableModel, calibration: CalibrationSet | None, sparsity: float, seed: int = 0
    ) -> tuple[Allocation, PruneReport]:
        """Search, then remove units; refuse what ``check_model`` refuses."""
        assert calibration is not None
        self.check_model(model, sparsity)
        sizes, units = model.sizes, find_units(model)
        accelerators = [model.device] if model.device.type == "cuda" else []
        with in_float32(model.module), torch.random.fork_rng(accelerators):
            torch.manual_seed(seed)  # of the model's dropout
            gates = self._search(model, calibration, units, sparsity)
        cut_all(model.module, units, [gate.nonzero().flatten() for gate in gates])
        masks = {layer.name: torch.ones(layer.weight.shape, dtype=torch.bool) for layer in model.layers}
        allocation = Allocation(model.sizes, sizes, sparsity, "model", UNITS)
        return allocation, PruneReport(masks)

    def _search(
        self, model: PrunableModel, samples: CalibrationSet, units: Sequence[Units], sparsity: float
    ) -> list[Tensor]:
        """Train with the multipliers in the forward pass; returns their last values, 0 or 1, [units] each."""
        gates = [
            torch.ones(one.count, dtype=torch.float32, device=model.device, requires_grad=True)
            for one in units
        ]
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
            learner.train()
            batches = track(self._batches(model, samples), "search", total=self.steps)
            for step, batch in enumerate(batches, start=1):
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
                    message = "search     step %d of %d  loss %.4g  units chosen: %.3f of the weights"
                    log.info(message, step, self.steps, loss.item(), share * sparsity)
        return [gate.detach() for gate in gates]

    def _batches(self, model: PrunableModel, samples: CalibrationSet) -> Iterator[dict[str, Any]]:
        """One batch per step, in the order in which the samples were drawn, over as many epochs as needed."""
        sequence: Any = samples.samples  # which a DataLoader reads like a Dataset
        loader = DataLoader(sequence, self.batch_size, collate_fn=Collator(model))
        yielded = 0
        while True:
            for batch in loader:
                if yielded == self.steps:
                    return
                yielded += 1
                yield batch


def progress(update: int, updates: int) -> float:
    """pi_t / p at update t of T, counted from 0; it rises to 1, slowly at the end."""
    return math.sqrt((1 - math.cos(math.pi * (update + 1) / updates)) / 2)


@torch.no_grad()
def update(gates: Sequence[Tensor], units: Sequence[Units], removed: float, share: float) -> None:
    """Set the multipliers from the gradients accumulated since the last update, and clear the gradients.

    Args:
        gates: multipliers of each attention and MLP, [units] each, with gradients.
        units: the units of each attention and MLP.
        removed: share of the weights in the units whose multipliers are lowered.
        share: how far these are lowered, from 0 (not at all) to 1 (to zero).
    """
    scores = standardised(
        [gate.grad if gate.grad is not None else torch.zeros_like(gate) for gate in gates],
        [one.kind for one in units],
    )
    for gate, chosen in zip(gates, choose(scores, units, removed), strict=True):
        gate.fill_(1.0).masked_fill_(chosen, 1 - share)
        gate.grad = None


def standardised(gradients: Sequence[Tensor], kinds: Sequence[str]) -> list[Tensor]:
    """Subtract the mean from the gradients of each kind and divide them by their standard deviation."""
    result: list[Tensor] = []
    for gradient, kind in zip(gradients, kinds, strict=True):
        same = torch.cat([other for other, its in zip(gradients, kinds, strict=True) if its == kind])
        spread = same.std(correction=min(1, len(same) - 1)).clamp_min(torch.finfo(same.dtype).tiny)
        result.append((gradient - same.mean()) / spread)
    return result


def choose(scores: Sequence[Tensor], units: Sequence[Units], removed: float) -> list[Tensor]:
    """Choose the units of the largest scores, as many as come closest to a share of the weights.

    The unit of the smallest score in each attention or MLP is never chosen, as a block without units would be
    another architecture.

    Args:
        scores: [units] of each attention and MLP.
        units: the units of each attention and MLP.
        removed: the share of the weights.

    Returns:
        Whether a unit is chosen, bool [units] of each attention and MLP.
    """
    protected = [torch.arange(len(score)) == int(score.argmin()) for score in scores]
    candidates = [
        score.cpu().masked_fill(smallest, -torch.inf)
        for score, smallest in zip(scores, protected, strict=True)
    ]
    flat = torch.cat(candidates)
    costs = torch.cat([torch.full((one.count,), one.cost) for one in units])
    order = flat.argsort(descending=True, stable=True)[: len(flat) - len(units)]
    reached = torch.cat([torch.zeros(1, dtype=torch.long), costs[order].cumsum(0)])
    count = int((reached - removed * total_cost(units)).abs().argmin())
    chosen = torch.zeros(len(flat), dtype=torch.bool)
    chosen[order[:count]] = True
    parts = chosen.split([one.count for one in units])
    return [part.to(score.device) for part, score in zip(parts, scores, strict=True)]
