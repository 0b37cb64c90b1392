"""The prune step: block by block as allocated, or the whole model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from functools import partial

from torch import Tensor

from ecoflap.console.telemetry import measure
from ecoflap.distributed.processes import shared_folder
from ecoflap.finetune.agreement import agree
from ecoflap.models.core.prunable import PrunableModel
from ecoflap.prune import driver
from ecoflap.prune.finished_blocks import FinishedBlocks
from ecoflap.prune.protocol import LayerPruner
from ecoflap.prune.report import PruneReport
from ecoflap.prune.whole_model import prune_whole
from ecoflap.run.plan import Plan
from ecoflap.run.show import show_allocation, show_block
from ecoflap.run.state import RunState
from ecoflap.run.steps.keys import blocks_key, statistics_key
from ecoflap.run.steps.prepare import read_training
from ecoflap.storage.cache.entries import AS_TENSORS
from ecoflap.storage.file_names import ALLOCATION, BLOCKS
from ecoflap.storage.files import write_json


def prune(plan: Plan, model: PrunableModel, state: RunState) -> None:
    """Remove weights, as the allocation or a pruner of the whole model decides."""
    with measure(state.costs, "prune"):
        if plan.pruner.allocates:
            samples = state.calibration
            if plan.pruner.trains:
                samples = state.searched = read_training(plan, model, state)
            sparsity, seed = plan.config.sparsity, plan.config.seed
            pruned = prune_whole(model, samples, plan.pruner, sparsity, show_block, seed)
            state.allocation, state.report = pruned
            agree(model, state.report.masks)  # each process has pruned the whole model by itself
        else:
            state.report = _prune_layers(plan, plan.pruner, model, state)
    if plan.pruner.allocates:
        assert state.allocation is not None
        write_json(plan.folder / ALLOCATION, asdict(state.allocation))
        show_allocation(model, state.allocation)


def _prune_layers(plan: Plan, pruner: LayerPruner, model: PrunableModel, state: RunState) -> PruneReport:
    """Prune block by block as allocated; store the pruned blocks, unless ``resume`` is false."""
    assert state.allocation is not None
    finished = None
    if plan.config.resume:
        finished = FinishedBlocks(shared_folder(plan.folder) / BLOCKS, blocks_key(plan, model, state))
    return driver.prune(
        model,
        state.calibration,
        pruner,
        state.allocation,
        plan.config.batch_size,
        on_block=show_block,
        propagate=plan.config.propagate,
        tokens=plan.config.tokens,
        finished=finished,
        recall=partial(_recall_statistics, plan, pruner, model, state),
    )


def _recall_statistics(
    plan: Plan,
    pruner: LayerPruner,
    model: PrunableModel,
    state: RunState,
    compute: Callable[[], dict[str, Tensor]],
) -> dict[str, Tensor]:
    """Statistics of all layers' inputs in the dense model, shared by all runs."""
    assert pruner.statistic is not None
    key = statistics_key(plan, pruner.statistic, model, state)
    found: dict[str, Tensor] = plan.store.get_or_compute("statistics", key, compute, AS_TENSORS)[0]
    return found
