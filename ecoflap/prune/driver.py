"""Prune block by block: each block sees inputs from its predecessors, and its own layers are measured while
it is still dense.
"""

from __future__ import annotations

import time
from collections.abc import Mapping

import torch
from torch import Tensor

from ecoflap.allocate.allocation import Allocation
from ecoflap.blocks.layer_calls import require_calls
from ecoflap.blocks.walk import Visit, walk
from ecoflap.data.calibration_set import CalibrationSet
from ecoflap.errors import NumericalError
from ecoflap.models.core.prunable import PrunableModel, quiet_forward
from ecoflap.prune.finished_blocks import FinishedBlocks
from ecoflap.prune.layers import Statistics, prune_layers
from ecoflap.prune.protocol import LayerPruner, OnBlock
from ecoflap.prune.report import BlockReport, PruneReport
from ecoflap.storage.masks import PackedMasks


@torch.no_grad()
def prune(
    model: PrunableModel,
    calibration: CalibrationSet | None,
    pruner: LayerPruner,
    allocation: Allocation,
    batch_size: int,
    on_block: OnBlock = lambda _: None,
    propagate: str = "pruned",
    finished: FinishedBlocks | None = None,
    precomputed_statistics: Mapping[str, Tensor] | None = None,
    checked: bool = False,
) -> PruneReport:
    """Prune every tower of the model in order, in place.

    Args:
        model: dense.
        calibration: the samples; not needed by a pruner that looks at no data.
        pruner: decides inside a layer.
        allocation: how many weights each layer keeps.
        batch_size: samples per forward pass; changes nothing beyond rounding.
        on_block: called after each block.
        propagate: whether a layer's inputs come from ``pruned`` predecessors (published; two passes over the
            data per block) or from ``dense`` ones (one pass; another result). Dense predecessors means the
            last towers first, so that what comes before is still whole.
        finished: where blocks are kept as soon as they are pruned, and read from when the run was stopped
            after them.
        precomputed_statistics: what ``measure_dense`` has found, with dense predecessors; the data are then
            not looked at again.
        checked: ``require_calls`` has let the model and all of the samples pass already.

    Raises:
        NumericalError: a weight or a hidden state is not finite, or a mask misses its count.
        UserError: the pruner can't be shown what some layer reads.
    """
    report, dense = PruneReport(), propagate == "dense"
    looks = calibration is not None and pruner.statistic is not None and precomputed_statistics is None
    batches = calibration.batches(batch_size) if calibration is not None and looks else []
    if looks and not checked:
        require_calls(model, batches, every_layer=True)
    towers = tuple(reversed(model.towers)) if dense else model.towers
    with quiet_forward(model.module):
        for number, visit in enumerate(walk(model, towers, batches, "prune", dense)):
            seconds = None if finished is None else _take_up(visit, finished, number, report, dense)
            if seconds is None:
                seconds = _prune_block(visit, pruner, allocation, report, dense, precomputed_statistics)
                if finished is not None:
                    with model.placement.using(visit.block):
                        finished.write(number, visit.block.layers, report, seconds)
            report.blocks.append(_summary(visit, allocation, report, seconds))
            on_block(report.blocks[-1])
    report.masks = PackedMasks.ordered(report.masks, [layer.name for layer in model.layers])
    return report


def _take_up(
    visit: Visit, finished: FinishedBlocks, number: int, report: PruneReport, dense: bool
) -> float | None:
    """Put a block that an earlier run pruned into its place, and move on through it as that run did; null
    where there is none.
    """
    block, placement = visit.block, visit.flow.model.placement
    if (found := finished.read(number)) is None:
        return None
    if dense:
        visit.leave()
    with placement.using(block):
        found.put(block.layers, report)
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
    dense: bool,
    precomputed_statistics: Mapping[str, Tensor] | None,
) -> float:
    """Prune the block whose turn it is, and move on through it; returns the seconds that it took."""
    started, block, placement = time.perf_counter(), visit.block, visit.flow.model.placement
    statistics: Statistics | None = (
        None if precomputed_statistics is not None else visit.measure(pruner.statistic, leave=dense)
    )
    with placement.using(block):
        if precomputed_statistics is not None:
            assert pruner.statistic is not None
            statistics = {
                layer: pruner.statistic.restored(precomputed_statistics[layer.name], layer.weight.device)
                for layer in block.layers
            }
        prune_layers(block.layers, statistics, pruner, allocation, report)
        if block.layers:
            placement.changed(block)
    if not dense:
        visit.leave()
    if not visit.finite:
        raise NumericalError(
            f"the output of {block.name} is not finite after pruning; use model.dtype=float32 or bfloat16, or"
            " a larger pruner.damping"
        )
    return time.perf_counter() - started


def _summary(visit: Visit, allocation: Allocation, report: PruneReport, seconds: float) -> BlockReport:
    names = [layer.name for layer in visit.block.layers]
    errors = [error for name in names if (error := report.errors[name]) is not None]
    mean_error = sum(errors) / len(errors) if errors else None
    sparsity = allocation.sparsity_of(names) if names else 0.0
    return BlockReport(visit.tower.name, visit.block.name, sparsity, mean_error, seconds)
