"""Prune the layers of one block with the statistics of their inputs, and report their output errors."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ecoflap.allocate.allocation import Allocation
from ecoflap.blocks.drifts import SharedInput
from ecoflap.blocks.input_statistics import InputStatistics
from ecoflap.blocks.statistics import Gram, Statistic
from ecoflap.distributed.collectives import deal, gathered, tensor_from
from ecoflap.distributed.processes import rank, size
from ecoflap.errors import NumericalError
from ecoflap.models.core.layers import Layer
from ecoflap.ops import compensate
from ecoflap.prune.protocol import LayerPruner, Pruned
from ecoflap.prune.report import PruneReport

log = logging.getLogger(__name__)

Statistics = Mapping[Layer, Statistic] | InputStatistics


def prune_layers(
    layers: Sequence[Layer],
    statistics: Statistics | None,
    pruner: LayerPruner,
    allocation: Allocation,
    report: PruneReport,
) -> None:
    """Prune the layers of a block in place, those that share a statistic together.

    Args:
        layers: the layers of one block.
        statistics: of their inputs; None for a pruner that uses no data.
        pruner: prunes one layer.
        allocation: how many weights each layer keeps.
        report: receives each layer's mask and error.

    Raises:
        NumericalError: if a weight is not finite, before or after, or a mask misses its count.
    """
    prune_groups(
        [
            SharedInput(tuple(sharing), statistics[sharing[0]] if statistics else None)
            for sharing in by_statistic(layers, statistics)
        ],
        pruner,
        allocation,
        report,
    )


def prune_groups(
    groups: Sequence[SharedInput], pruner: LayerPruner, allocation: Allocation, report: PruneReport
) -> None:
    """Prune groups of layers in place, dealt out over the processes of the run.

    Pruners that solve with a Gram matrix take long, so that each layer is pruned by one process, which sends
    the others the result; all others prune every layer in each process, from the same statistics.

    Args:
        groups: layers and what is known of their inputs; the same in all processes.
        pruner: prunes one layer.
        allocation: how many weights each layer keeps.
        report: receives each layer's mask and error.

    Raises:
        NumericalError: if a weight is not finite, before or after, or a mask misses its count.
    """
    layers = [layer for group in groups for layer in group.layers]
    owners = dict.fromkeys(layers, rank())
    dealt = pruner.statistic is Gram
    if dealt:
        costs = [float(layer.size * layer.shape[1]) for layer in layers]
        owners = dict(zip(layers, deal(costs), strict=True))
    for group in groups:
        own = tuple(layer for layer in group.layers if owners[layer] == rank())
        if own:
            _prune_together(group._replace(layers=own), pruner, allocation, report)
    if dealt:
        _exchange(owners, report)
    for layer in layers:
        if layer.name in report.notes:
            log.warning("%s: %s", layer.name, report.notes[layer.name])


def _exchange(owners: Mapping[Layer, int], report: PruneReport) -> None:
    """Give each process the layers that others have pruned.

    Args:
        owners: {layer: rank of the process that has pruned it}, in the same order in all processes.
        report: holds the results of the layers that this process has pruned, and receives the others.
    """
    if size() == 1:
        return
    own = [layer.name for layer, owner in owners.items() if owner == rank()]
    parts: Sequence[dict[str, Any]] = (report.errors, report.tokens, report.notes)
    for found in gathered([{name: part[name] for name in own if name in part} for part in parts]):
        for part, new in zip(parts, found, strict=True):
            part.update(new)
    for layer, owner in owners.items():
        weight, mask = layer.matrix(), torch.zeros(layer.weight.shape, dtype=torch.bool)
        if owner == rank():
            mask = report.masks[layer.name]
        weight, mask = tensor_from(weight, owner), tensor_from(mask, owner)
        if owner != rank():
            layer.write(weight)
            report.masks[layer.name] = mask


def by_statistic(layers: Sequence[Layer], statistics: Statistics | None) -> list[list[Layer]]:
    """The layers grouped by statistic; one by one without statistics."""
    groups: dict[int, list[Layer]] = {}
    for layer in layers:
        groups.setdefault(id(statistics[layer]) if statistics else id(layer), []).append(layer)
    return list(groups.values())


def _prune_together(
    group: SharedInput, pruner: LayerPruner, allocation: Allocation, report: PruneReport
) -> None:
    """Prune the layers of a group in place; the error of compensated weights is that of pruning them."""
    layers, statistic, drifts = group
    dense = [layer.matrix().clone() for layer in layers]
    if drifts is not None:
        assert isinstance(statistic, Gram)
        streams = [drifts.streams.get(layer) for layer in layers]
        dense = compensate(dense, statistic.value, drifts.inputs, streams)
    results = solve_layers(layers, dense, statistic, pruner, allocation.keep)
    for layer, before, pruned in zip(layers, dense, results, strict=True):
        if pruned.note:
            report.notes[layer.name] = pruned.note
        _check(layer, pruned, allocation.keep[layer.name])
        layer.write(pruned.weight + 0.0)  # no negative zeros: a bitmask checkpoint would store them
        after = layer.matrix()
        report.masks[layer.name] = layer.oriented(pruned.mask).contiguous().cpu()
        known = None if statistic is None or statistic.assumed else statistic
        report.errors[layer.name] = None if known is None else _relative_error(known, before, after)
        if layer.is_expert and statistic is not None:
            report.tokens[layer.name] = 0 if known is None else known.tokens


def solve_layers(
    layers: Sequence[Layer],
    dense: Sequence[Tensor],
    statistic: Statistic | None,
    pruner: LayerPruner,
    keep: Mapping[str, int],
) -> list[Pruned]:
    """The pruned weights of layers that share a statistic; the layers stay as they are.

    Args:
        layers: the layers.
        dense: their dense weights, [rows, cols] each.
        statistic: of the input that they read; None for a pruner that uses no data.
        pruner: prunes one layer.
        keep: {layer: number of weights to keep}.

    Raises:
        NumericalError: if the pruner can't compute with the weights or the inputs.
    """
    try:
        return pruner.together(dense, statistic, [keep[layer.name] for layer in layers])
    except ValueError as error:
        finite = [bool(torch.isfinite(weight).all()) for weight in dense]
        culprit = layers[0] if all(finite) else layers[finite.index(False)]
        raise NumericalError(f"{culprit.name}: {error}") from error


def _check(layer: Layer, pruned: Pruned, keep: int) -> None:
    """Refuse a pruned layer whose mask misses its count, or whose weights are not finite."""
    kept = int(pruned.mask.sum())
    if kept != keep:
        raise NumericalError(f"{layer.name}: the mask keeps {kept} weights and the allocation says {keep}")
    if not torch.isfinite(pruned.weight).all():
        raise NumericalError(
            f"{layer.name}: pruning made weights that are not finite; use more calibration samples or a"
            " larger pruner.damping"
        )


def _relative_error(statistic: Statistic, dense: Tensor, pruned: Tensor) -> float:
    """sqrt(||(W' - W) X||^2 / ||W X||^2) of weights [rows, cols]; 0 for an output of zeros."""
    energy = statistic.output_energy(dense)
    if energy <= 0:
        return 0.0
    return math.sqrt(max(statistic.output_energy(pruned.float() - dense.float()), 0.0) / energy)
