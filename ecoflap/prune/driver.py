"""Prune block by block: each block sees inputs from its predecessors, and its own layers are measured while it is still dense."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ecoflap.allocate.allocation import Allocation
from ecoflap.calibrate.capture import Flow
from ecoflap.calibrate.samples import CalibrationSet
from ecoflap.calibrate.statistics import Enough, Gram, InputStatistics, MeanSquare, Statistic
from ecoflap.console import track
from ecoflap.errors import NumericalError, UserError
from ecoflap.masks import PackedMasks
from ecoflap.models.layers import Layer
from ecoflap.models.prunable import Batch, PrunableModel, quiet_forward
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

    masks: MutableMapping[str, Tensor] = field(default_factory=PackedMasks)
    errors: dict[str, float | None] = field(default_factory=dict)
    blocks: list[BlockReport] = field(default_factory=list)


PROPAGATE = ("pruned", "dense")


def check_propagate(choice: str) -> None:
    """Refuse a choice that there isn't.

    Raises:
        UserError: so it is.
    """
    if choice not in PROPAGATE:
        raise UserError(f"propagate={choice} is not known; choose {' or '.join(PROPAGATE)}")


@torch.no_grad()
def prune(
    model: PrunableModel,
    calibration: CalibrationSet | None,
    pruner: LayerPruner,
    allocation: Allocation,
    batch_size: int,
    on_block: Callable[[BlockReport], None] = lambda _: None,
    propagate: str = "pruned",
    finished: FinishedBlocks | None = None,
    given: Mapping[str, Tensor] | None = None,
) -> PruneReport:
    """Prune every tower of the model in order, in place.

    Args:
        model: dense.
        calibration: the samples; not needed by a pruner that looks at no data.
        pruner: decides inside a layer.
        allocation: how many weights each layer keeps.
        batch_size: samples per forward pass; changes nothing beyond rounding.
        on_block: called after each block.
        propagate: whether a layer's inputs come from ``pruned`` predecessors (published; two passes over the data per block) or from ``dense`` ones
            (one pass; another result). Dense predecessors means the last towers first, so that what comes before is still whole.
        finished: where blocks are kept as soon as they are pruned, and read from when the run was stopped after them.
        given: what ``measure_dense`` has found, with dense predecessors; the data are then not looked at again.

    Raises:
        NumericalError: a weight or a hidden state is not finite, or a mask misses its count.
    """
    report, dense = PruneReport(), propagate == "dense"
    looks = calibration is not None and pruner.statistic is not None and given is None
    batches = calibration.batches(batch_size) if calibration is not None and looks else []
    towers = [tower for tower in model.towers if tower.layers]
    work = _blocks_in_order(model, reversed(towers) if dense else towers, batches, dense)
    with quiet_forward(model.module):
        for number, (flow, index) in enumerate(track(work, "prune", total=sum(len(tower.blocks) for tower in towers))):
            flow.enter(index)
            seconds = None if finished is None else _take_up(flow, index, finished, number, report, dense)
            if seconds is None:
                seconds = _prune_block(flow, index, pruner, allocation, report, dense, given)
                if finished is not None:
                    with model.residence.using(flow.tower.blocks[index]):
                        finished.write(number, flow.tower.blocks[index].layers, report, seconds)
            report.blocks.append(_summary(flow.tower, index, allocation, report, seconds))
            on_block(report.blocks[-1])
    report.masks = PackedMasks.ordered(report.masks, [layer.name for layer in model.layers])
    return report


def _blocks_in_order(model: PrunableModel, towers: Iterable[Tower], batches: Sequence[Batch], dense: bool) -> Iterator[tuple[Flow, int]]:
    """Every block of the towers, with the flow of its tower; a tower's states are let go before the next one's are made."""
    for tower in towers:
        flow = Flow(model, tower, batches)
        order = range(len(tower.blocks))
        # Where a model changes the hidden states between blocks, each block's inputs are made anew by all blocks before it.
        for index in reversed(order) if dense and not flow.chained else order:
            yield flow, index
        del flow


def _take_up(flow: Flow, index: int, finished: FinishedBlocks, number: int, report: PruneReport, dense: bool) -> float | None:
    """Put a block that an earlier run pruned into its place, and move on through it as that run did; null where there is none."""
    block, residence = flow.tower.blocks[index], flow.model.residence
    if (found := finished.read(number)) is None:
        return None
    if dense:
        flow.leave(index)
    with residence.using(block):
        found.put(block.layers, report)
        if block.layers:
            residence.changed(block)
    if not dense:
        flow.leave(index)
    return found.seconds


def _prune_block(
    flow: Flow, index: int, pruner: LayerPruner, allocation: Allocation, report: PruneReport, dense: bool, given: Mapping[str, Tensor] | None
) -> float:
    """Prune the block whose turn it is, and move on through it; returns the seconds that it took."""
    started, block, residence = time.perf_counter(), flow.tower.blocks[index], flow.model.residence
    statistics: Mapping[Layer, Statistic] | InputStatistics | None
    if given is None:
        statistics = _measure(flow, index, pruner.statistic, dense)
    else:
        statistics = {layer: MeanSquare.restored(given[layer.name].to(layer.weight.device)) for layer in block.layers}
    with residence.using(block):
        for layers in _sharing(block.layers, statistics):
            _prune_layers(layers, statistics[layers[0]] if statistics else None, pruner, allocation, report)
        if block.layers:
            residence.changed(block)
    if not dense:
        flow.leave(index)
    if not all(stream.finite for stream in flow.streams):
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


@torch.no_grad()
def measure_dense(model: PrunableModel, calibration: CalibrationSet, batch_size: int) -> dict[str, Tensor]:
    """{layer: sum of squares of each input column, and the number of tokens, [cols + 1], fp64} of the dense model, in one pass over the data."""
    found: dict[str, Tensor] = {}
    towers = [tower for tower in model.towers if tower.layers]
    work = _blocks_in_order(model, towers, calibration.batches(batch_size), dense=True)
    with quiet_forward(model.module):
        for flow, index in track(work, "statistics", total=sum(len(tower.blocks) for tower in towers)):
            flow.enter(index)
            if (statistics := _measure(flow, index, MeanSquare, dense=True)) is not None:
                for layer in flow.tower.blocks[index].layers:
                    statistic = statistics[layer]
                    assert isinstance(statistic, MeanSquare)
                    found[layer.name] = statistic.kept()
    return found


def _measure(flow: Flow, index: int, kind: type[MeanSquare] | type[Gram] | None, dense: bool) -> InputStatistics | None:
    """Run the dense block once over all batches and gather what the pruner needs; with ``dense``, its outputs are the next block's inputs."""
    streams, block = flow.streams, flow.tower.blocks[index]
    if kind is None or not block.layers:
        if dense:
            flow.leave(index)
        return None
    statistics = InputStatistics(kind)
    with statistics.gathering(block.layers, stop=not dense):
        for stream in streams:
            call = stream.calls[index]
            statistics.look_at(stream.counted, call.tensors)
            with suppress(Enough):
                output = call.run(block.module, stream.hidden)
                if dense:
                    stream.hidden = output
    return statistics


def _sharing(layers: Sequence[Layer], statistics: Mapping[Layer, Statistic] | InputStatistics | None) -> list[list[Layer]]:
    """The layers in groups of one statistic each; one by one where nothing was measured."""
    groups: dict[int, list[Layer]] = {}
    for layer in layers:
        groups.setdefault(id(statistics[layer]) if statistics else id(layer), []).append(layer)
    return list(groups.values())


def _prune_layers(layers: Sequence[Layer], statistic: Statistic | None, pruner: LayerPruner, allocation: Allocation, report: PruneReport) -> None:
    """Prune the layers that share a statistic."""
    dense = [layer.matrix().clone() for layer in layers]
    try:
        results = pruner.together(dense, statistic, [allocation.keep[layer.name] for layer in layers])  # type: ignore[arg-type]
    except ValueError as error:
        culprit = next((layer for layer, weight in zip(layers, dense, strict=True) if not torch.isfinite(weight).all()), layers[0])
        raise NumericalError(f"{culprit.name}: {error}") from error
    for layer, before, pruned in zip(layers, dense, results, strict=True):
        if pruned.note:
            log.warning("%s: %s", layer.name, pruned.note)
        _check(layer, pruned, allocation.keep[layer.name])
        layer.write(pruned.weight)
        report.masks[layer.name] = layer.oriented(pruned.mask).contiguous().cpu()
        report.errors[layer.name] = None if statistic is None else _relative_error(statistic, before, layer.matrix())


def _check(layer: Layer, pruned: Pruned, keep: int) -> None:
    kept = int(pruned.mask.sum())
    if kept != keep:
        raise NumericalError(f"{layer.name}: the mask keeps {kept} weights and the allocation says {keep}")
    if not torch.isfinite(pruned.weight).all():
        raise NumericalError(f"{layer.name}: pruning made weights that are not finite; use more calibration samples or a larger pruner.damping")


def _relative_error(statistic: Statistic, dense: Tensor, pruned: Tensor) -> float:
    energy = statistic.output_energy(dense)
    return math.sqrt(max(statistic.output_energy(pruned.float() - dense.float()), 0.0) / energy) if energy > 0 else 0.0
