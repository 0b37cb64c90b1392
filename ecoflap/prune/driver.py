"""Prune block by block: each block sees inputs from its pruned predecessors, and its own layers are measured while it is still dense."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ecoflap.allocate.allocation import Allocation
from ecoflap.calibrate.capture import Flow
from ecoflap.calibrate.samples import CalibrationSet
from ecoflap.calibrate.statistics import InputStatistics, Statistic
from ecoflap.console import track
from ecoflap.errors import NumericalError
from ecoflap.models.layers import Layer
from ecoflap.models.prunable import PrunableModel, quiet_forward
from ecoflap.models.towers import Tower
from ecoflap.prune.finished_blocks import FinishedBlocks
from ecoflap.prune.pruners import LayerPruner, Pruned

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class BlockReport:
    """What happened to one block, for the line that is printed.

    Attributes:
        tower: its tower.
        block: its name.
        sparsity: realised.
        error: relative output error, mean over its layers; null without data.
        seconds: spent on it.
    """

    tower: str
    block: str
    sparsity: float
    error: float | None
    seconds: float


@dataclass
class PruneReport:
    """What was removed.

    Attributes:
        masks: {layer: mask as the parameter is stored, True where kept}, on the CPU.
        errors: {layer: sqrt(||(W' - W) X||^2 / ||W X||^2)}. Exact where a Gram matrix was gathered; for Wanda, columns are taken as uncorrelated;
            null where no data was looked at.
        blocks: one report per block.
    """

    masks: dict[str, Tensor] = field(default_factory=dict)
    errors: dict[str, float | None] = field(default_factory=dict)
    blocks: list[BlockReport] = field(default_factory=list)


@torch.no_grad()
def prune(
    model: PrunableModel,
    calibration: CalibrationSet | None,
    pruner: LayerPruner,
    allocation: Allocation,
    batch_size: int,
    on_block: Callable[[BlockReport], None] = lambda _: None,
    finished: FinishedBlocks | None = None,
) -> PruneReport:
    """Prune every tower of the model in order, in place.

    Args:
        model: dense.
        calibration: the samples; not needed by a pruner that looks at no data.
        pruner: decides inside a layer.
        allocation: how many weights each layer keeps.
        batch_size: samples per forward pass; changes nothing beyond rounding.
        on_block: called after each block.
        finished: where blocks are kept as soon as they are pruned, and read from when the run was stopped after them.

    Raises:
        NumericalError: a weight or a hidden state is not finite, or a mask misses its count.
    """
    report = PruneReport()
    batches = calibration.batches(batch_size) if calibration is not None and pruner.statistic is not None else []
    work = [(tower, index) for tower in model.towers if tower.layers for index in range(len(tower.blocks))]
    flow: Flow | None = None
    with quiet_forward(model.module):
        for number, (tower, index) in enumerate(track(work, "prune", total=len(work))):
            if index == 0:
                flow = None  # let go of the last tower's states before the next one's are made
                flow = Flow(model, tower, batches)
            assert flow is not None
            flow.enter(index)
            seconds = None if finished is None else finished.read(number, tower.blocks[index].layers, report)
            if seconds is not None:
                flow.leave(index)
            else:
                seconds = _prune_block(flow, index, pruner, allocation, report)
                if finished is not None:
                    finished.write(number, tower.blocks[index].layers, report, seconds)
            report.blocks.append(_summary(tower, index, allocation, report, seconds))
            on_block(report.blocks[-1])
    return report


def _prune_block(flow: Flow, index: int, pruner: LayerPruner, allocation: Allocation, report: PruneReport) -> float:
    """Prune the block whose turn it is, and move on through it; returns the seconds that it took."""
    started, block = time.perf_counter(), flow.tower.blocks[index]
    statistics = _measure(flow, index, pruner)
    for layer in block.layers:
        _prune_layer(layer, statistics[layer] if statistics else None, pruner, allocation.keep[layer.name], report)
    flow.leave(index)
    if not all(torch.isfinite(stream.hidden).all() for stream in flow.streams):
        raise NumericalError(
            f"the output of {block.name} is not finite after pruning; use model.dtype=float32 or bfloat16, or a larger pruner.damping"
        )
    return time.perf_counter() - started


def _summary(tower: Tower, index: int, allocation: Allocation, report: PruneReport, seconds: float) -> BlockReport:
    block = tower.blocks[index]
    names = [layer.name for layer in block.layers]
    errors = [error for name in names if (error := report.errors[name]) is not None]
    mean_error = sum(errors) / len(errors) if errors else None
    return BlockReport(tower.name, block.name, allocation.sparsity_of(names) if names else 0.0, mean_error, seconds)


def _measure(flow: Flow, index: int, pruner: LayerPruner) -> InputStatistics | None:
    """Run the dense block once over all batches and gather what the pruner needs."""
    streams, block = flow.streams, flow.tower.blocks[index]
    if pruner.statistic is None or not block.layers:
        return None
    statistics = InputStatistics(pruner.statistic)
    with statistics.gathering(block.layers):
        for stream in streams:
            call = stream.calls[index]
            statistics.look_at(stream.counted, call.tensors)
            call.run(block.module, stream.hidden)
    return statistics


def _prune_layer(layer: Layer, statistic: Statistic | None, pruner: LayerPruner, keep: int, report: PruneReport) -> None:
    dense = layer.matrix().clone()
    try:
        pruned = pruner(dense, statistic, keep)  # type: ignore[arg-type]
    except ValueError as error:
        raise NumericalError(f"{layer.name}: {error}") from error
    if pruned.note:
        log.warning("%s: %s", layer.name, pruned.note)
    _check(layer, pruned, keep)
    layer.write(pruned.weight)
    report.masks[layer.name] = layer.oriented(pruned.mask).contiguous().cpu()
    report.errors[layer.name] = None if statistic is None else _relative_error(statistic, dense, layer.matrix())


def _check(layer: Layer, pruned: Pruned, keep: int) -> None:
    kept = int(pruned.mask.sum())
    if kept != keep:
        raise NumericalError(f"{layer.name}: the mask keeps {kept} weights and the allocation says {keep}")
    if not torch.isfinite(pruned.weight).all():
        raise NumericalError(f"{layer.name}: pruning made weights that are not finite; use more calibration samples or a larger pruner.damping")


def _relative_error(statistic: Statistic, dense: Tensor, pruned: Tensor) -> float:
    energy = statistic.output_energy(dense)
    return math.sqrt(max(statistic.output_energy(pruned.float() - dense.float()), 0.0) / energy) if energy > 0 else 0.0
