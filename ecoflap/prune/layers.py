"""Prune the layers of one block, at what was measured of their inputs, and note how far their outputs
moved.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ecoflap.allocate.allocation import Allocation
from ecoflap.blocks.statistics import InputStatistics, Statistic
from ecoflap.errors import NumericalError
from ecoflap.models.core.layers import Layer
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
    """Prune the layers of a block in place; those that share a statistic together.

    Args:
        layers: of one block.
        statistics: of their inputs; null where the pruner looks at no data.
        pruner: decides inside a layer.
        allocation: how many weights each layer keeps.
        report: gets each layer's mask and error.

    Raises:
        NumericalError: a weight is not finite, before or after, or a mask misses its count.
    """
    for sharing in _sharing(layers, statistics):
        _prune_together(sharing, statistics[sharing[0]] if statistics else None, pruner, allocation, report)


def _sharing(layers: Sequence[Layer], statistics: Statistics | None) -> list[list[Layer]]:
    """The layers in groups of one statistic each; one by one where nothing was measured."""
    groups: dict[int, list[Layer]] = {}
    for layer in layers:
        groups.setdefault(id(statistics[layer]) if statistics else id(layer), []).append(layer)
    return list(groups.values())


def _prune_together(
    layers: Sequence[Layer],
    statistic: Statistic | None,
    pruner: LayerPruner,
    allocation: Allocation,
    report: PruneReport,
) -> None:
    """Prune the layers that share a statistic."""
    dense = [layer.matrix().clone() for layer in layers]
    try:
        results = pruner.together(dense, statistic, [allocation.keep[layer.name] for layer in layers])
    except ValueError as error:
        culprit = next(
            (layer for layer, weight in zip(layers, dense, strict=True) if not torch.isfinite(weight).all()),
            layers[0],
        )
        raise NumericalError(f"{culprit.name}: {error}") from error
    for layer, before, pruned in zip(layers, dense, results, strict=True):
        if pruned.note:
            log.warning("%s: %s", layer.name, pruned.note)
        _check(layer, pruned, allocation.keep[layer.name])
        layer.write(pruned.weight)
        report.masks[layer.name] = layer.oriented(pruned.mask).contiguous().cpu()
        report.errors[layer.name] = (
            None if statistic is None else _relative_error(statistic, before, layer.matrix())
        )


def _check(layer: Layer, pruned: Pruned, keep: int) -> None:
    kept = int(pruned.mask.sum())
    if kept != keep:
        raise NumericalError(f"{layer.name}: the mask keeps {kept} weights and the allocation says {keep}")
    if not torch.isfinite(pruned.weight).all():
        raise NumericalError(
            f"{layer.name}: pruning made weights that are not finite; use more calibration samples or a"
            " larger pruner.damping"
        )


def _relative_error(statistic: Statistic, dense: Tensor, pruned: Tensor) -> float:
    energy = statistic.output_energy(dense)
    return (
        math.sqrt(max(statistic.output_energy(pruned.float() - dense.float()), 0.0) / energy)
        if energy > 0
        else 0.0
    )
