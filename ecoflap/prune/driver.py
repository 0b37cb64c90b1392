"""Prune block by block, with statistics of the inputs of a block's layers."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor

from ecoflap.allocate.allocation import Allocation
from ecoflap.blocks.dense_twin import DenseTwin
from ecoflap.blocks.walk import Visit, walk
from ecoflap.data.batch import Batch
from ecoflap.data.calibration_set import CalibrationSet
from ecoflap.distributed.collectives import gathered
from ecoflap.distributed.processes import is_first
from ecoflap.errors import NumericalError
from ecoflap.models.core.forward_modes import quiet_forward
from ecoflap.models.core.prunable import PrunableModel
from ecoflap.prune.finished_blocks import FinishedBlocks
from ecoflap.prune.inputs import measure_dense
from ecoflap.prune.layers import Statistics, prune_groups, prune_layers
from ecoflap.prune.protocol import LayerPruner
from ecoflap.prune.report import NOTABLE, BlockReport, OnBlock, PruneReport
from ecoflap.storage.masks import PackedMasks

log = logging.getLogger(__name__)

RecallStatistics = Callable[[Callable[[], dict[str, Tensor]]], dict[str, Tensor]]
"""Given how to compute them: stored statistics of all layers' inputs in the dense model, or computed ones."""


@torch.no_grad()
def prune(
    model: PrunableModel,
    calibration: CalibrationSet | None,
    pruner: LayerPruner,
    allocation: Allocation,
    batch_size: int,
    on_block: OnBlock = lambda _: None,
    propagate: str = "pruned",
    tokens: str = "all",
    finished: FinishedBlocks | None = None,
    recall: RecallStatistics | None = None,
) -> PruneReport:
    """Prune every tower of the model in order, in place.

    Args:
        model: dense; ``require_capture`` accepts it.
        calibration: the samples; may be None for a pruner that uses no data.
        pruner: prunes one layer.
        allocation: how many weights each layer keeps.
        batch_size: samples per forward pass; changes nothing beyond rounding, unless the samples of a batch
            meet inside of the model.
        on_block: called after each block.
        propagate: what comes before a layer when its inputs are measured: ``pruned`` blocks, and its own
            block dense (as published; two passes over the data per block); everything before the ``layer``
            itself pruned (one pass where a batch holds all samples); the same, with weights that are
            ``compensated`` first for the errors before the layer (a dense pass beside it); or ``dense``
            blocks (one pass). Each gives another result. With ``dense``, storable statistics are gathered
            before anything is pruned; for others, the last towers are pruned first, so that all predecessors
            are still dense.
        tokens: which tokens count in statistics, see ``ecoflap.blocks.token_choice.choose_tokens``.
        finished: stores blocks as soon as they are pruned; those that a stopped run has stored are applied
            instead of pruned.
        recall: reads the statistics of the dense model that an earlier run has stored, or computes and stores
            them.

    Raises:
        NumericalError: if a weight or a hidden state is not finite, or a mask misses its count.
        UserError: if the inputs of a layer can't be captured, or the tokens can't be told apart.
    """
    report, dense, statistic = PruneReport(), propagate == "dense", pruner.statistic
    twin = DenseTwin() if propagate == "compensated" else None
    batches: Sequence[Batch] = []
    statistics: Mapping[str, Tensor] | None = None
    if calibration is not None and statistic is not None:
        batches = calibration.batches(batch_size)
        if dense and statistic.storable:
            compute = partial(measure_dense, model, calibration, batch_size, statistic, tokens)
            statistics, batches = compute() if recall is None else recall(compute), []
    towers = tuple(reversed(model.towers)) if dense else model.towers
    with quiet_forward(model.module):
        for number, visit in enumerate(walk(model, towers, batches, "prune", dense, tokens, twin)):
            seconds = None if finished is None else _apply_finished(visit, finished, number, report, dense)
            if seconds is None:
                seconds = _prune_block(visit, pruner, allocation, report, propagate, statistics)
                if finished is not None and is_first():
                    with model.placement.using(visit.block):
                        finished.write(number, visit.block.layers, report, seconds)
            report.blocks.append(_summary(visit, allocation, report, seconds))
            on_block(report.blocks[-1])
    report.masks = PackedMasks.ordered(report.masks, [layer.name for layer in model.layers])
    _warn_of_experts(model, report)
    warn_of_zeroed(model, report, pruner.name)
    return report


def warn_of_zeroed(model: PrunableModel, report: PruneReport, pruner: str) -> None:
    """Warn of a pruner that made weights zero which its masks keep, more than rounding does."""
    zeroed, size = sum(report.zeroed.values()), sum(layer.size for layer in model.layers)
    if zeroed > NOTABLE * size:
        log.warning(
            "pruner=%s set %.4f of the prunable weights to zero that its masks keep, the most in %s: the"
            " model is sparser than was asked for",
            pruner,
            zeroed / size,
            max(report.zeroed, key=report.zeroed.__getitem__),
        )


def _warn_of_experts(model: PrunableModel, report: PruneReport) -> None:
    """Warn of experts that no token was routed to, and of those with fewer tokens than input columns."""
    counts = [(layer, report.tokens[layer.name]) for layer in model.layers if layer.name in report.tokens]
    unseen = [layer for layer, tokens in counts if not tokens]
    few = [layer for layer, tokens in counts if 0 < tokens < layer.shape[1]]
    if unseen:
        log.warning(
            "no calibration token was routed to %d of %d matrices of experts, such as %s: they were pruned by"
            " their weights alone; more calibration.samples reach more experts",
            len(unseen),
            len(counts),
            unseen[0].name,
        )
    if few:
        log.info(
            "%d of %d matrices of experts saw fewer tokens than they have columns",
            len(few),
            len(counts),
        )


def _apply_finished(
    visit: Visit, finished: FinishedBlocks, number: int, report: PruneReport, dense: bool
) -> float | None:
    """Apply a block that a stopped run has pruned, and pass the hidden states through it as that run did.

    Returns:
        The seconds that pruning it took; None if it is not stored.
    """
    block, placement = visit.block, visit.flow.model.placement
    found = finished.read(number)
    if not all(gathered(found is not None)):
        return None
    assert found is not None
    if dense:
        visit.leave()
    if visit.twin is not None:
        visit.twin.leave()
    with placement.using(block):
        found.apply(block.layers, report)
        if block.layers:
            placement.changed(block)
    if not dense:
        visit.leave()
    return found.seconds


def _prune_block(
    visit: Visit,
    pruner: LayerPruner,
    allocation: Allocation,
    report: PruneReport,
    propagate: str,
    stored: Mapping[str, Tensor] | None,
) -> float:
    """Prune a block and pass the hidden states through it; returns the seconds that this took."""
    started, block = time.perf_counter(), visit.block
    if propagate in ("layer", "compensated") and visit.flow.batches and block.layers:
        _prune_layer_by_layer(visit, pruner, allocation, report)
    else:
        if visit.twin is not None:
            visit.twin.leave()
        _prune_whole(visit, pruner, allocation, report, propagate == "dense", stored)
    if not visit.finite:
        damping = ", or a larger pruner.damping" if hasattr(pruner, "damping") else ""
        raise NumericalError(
            f"the output of {block.name} is not finite after pruning; use model.dtype=float32 or bfloat16"
            f"{damping}"
        )
    return time.perf_counter() - started


def _prune_layer_by_layer(
    visit: Visit, pruner: LayerPruner, allocation: Allocation, report: PruneReport
) -> None:
    """Prune each layer of a block in the run that has reached it, and leave the block."""
    block, placement = visit.block, visit.flow.model.placement
    assert pruner.statistic is not None

    together = partial(prune_groups, pruner=pruner, allocation=allocation, report=report)
    with placement.using(block):
        visit.prune_layer_by_layer(pruner.statistic, together)
        placement.changed(block)


def _prune_whole(
    visit: Visit,
    pruner: LayerPruner,
    allocation: Allocation,
    report: PruneReport,
    dense: bool,
    stored: Mapping[str, Tensor] | None,
) -> None:
    """Prune all layers of a block with the statistics of the dense block, and leave it pruned or dense."""
    block, placement = visit.block, visit.flow.model.placement
    statistics: Statistics | None = None
    if stored is None:
        statistics = visit.measure(pruner.statistic, leave=dense)
    with placement.using(block):
        if stored is not None:
            assert pruner.statistic is not None
            statistics = {
                layer: pruner.statistic.restored(stored[layer.name], layer.weight.device)
                for layer in block.layers
            }
        prune_layers(block.layers, statistics, pruner, allocation, report)
        if block.layers:
            placement.changed(block)
    if not dense:
        visit.leave()


def _summary(visit: Visit, allocation: Allocation, report: PruneReport, seconds: float) -> BlockReport:
    names = [layer.name for layer in visit.block.layers]
    errors = [error for name in names if (error := report.errors[name]) is not None]
    mean_error = sum(errors) / len(errors) if errors else None
    sparsity = allocation.sparsity_of(names) if names else 0.0
    return BlockReport(visit.tower.name, visit.block.name, sparsity, mean_error, seconds)
