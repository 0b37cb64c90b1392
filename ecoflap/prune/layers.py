"""Prune the layers of one block with the statistics of their inputs, and report their output errors."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ecoflap.allocate.allocation import Allocation
from ecoflap.blocks.drifts import Drifts
from ecoflap.blocks.input_statistics import InputStatistics
from ecoflap.blocks.statistics import Gram, Statistic
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
    for sharing in by_statistic(layers, statistics):
        prune_together(sharing, statistics[sharing[0]] if statistics else None, pruner, allocation, report)


def by_statistic(layers: Sequence[Layer], statistics: Statistics | None) -> list[list[Layer]]:
    """The layers grouped by statistic; one by one without statistics."""
    groups: dict[int, list[Layer]] = {}
    for layer in layers:
        groups.setdefault(id(statistics[layer]) if statistics else id(layer), []).append(layer)
    return list(groups.values())


def prune_together(
    layers: Sequence[Layer],
    statistic: Statistic | None,
    pruner: LayerPruner,
    allocation: Allocation,
    report: PruneReport,
    drifts: Drifts | None = None,
) -> None:
    """Prune layers that share a statistic in place.

    Args:
        layers: the layers.
        statistic: of the input that they read; None for a pruner that uses no data.
        pruner: prunes one layer.
        allocation: how many weights each layer keeps.
        report: receives each layer's mask and error.
        drifts: of the input and of residual streams from those in the dense model, for which the weights are
            compensated first, see ``ecoflap.ops.compensation``; with them, the error is that of the
            compensated weights.

    Raises:
        NumericalError: if a weight is not finite, before or after, or a mask misses its count.
    """
    dense = [layer.matrix().clone() for layer in layers]
    if drifts is not None:
        assert isinstance(statistic, Gram)
        streams = [drifts.streams.get(layer) for layer in layers]
        dense = compensate(dense, statistic.value, drifts.inputs, streams)
    results = solve_layers(layers, dense, statistic, pruner, allocation.keep)
    for layer, before, pruned in zip(layers, dense, results, strict=True):
        if pruned.note:
            log.warning("%s: %s", layer.name, pruned.note)
        _check(layer, pruned, allocation.keep[layer.name])
        layer.write(pruned.weight)
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
