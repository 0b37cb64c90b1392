"""Prune the layers of one block with the statistics of their inputs, and report their output errors."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from ecoflap.allocate.allocation import Allocation
from ecoflap.blocks.drifts import SharedInput
from ecoflap.blocks.gram import Gram
from ecoflap.blocks.input_statistics import InputStatistics
from ecoflap.blocks.statistics import Statistic
from ecoflap.distributed.processes import rank
from ecoflap.errors import NumericalError
from ecoflap.models.core.layers import Layer
from ecoflap.ops import compensate
from ecoflap.prune.pieces import Piece, exchanged
from ecoflap.prune.protocol import LayerPruner, Pruned
from ecoflap.prune.report import PruneReport
from ecoflap.prune.row_shards import RowShards, partition_rows, splits_solves
from ecoflap.prune.solve import solve_layers

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
    """Prune groups of layers in place, partitioned among the processes of the run.

    Pruners that solve with a Gram matrix take long, so that each process solves for some layers, or some rows
    of them, and all give each other the results; all others prune every layer in each process, from the same
    statistics.

    Args:
        groups: layers and what is known of their inputs; the same in all processes.
        pruner: prunes one layer.
        allocation: how many weights each layer keeps.
        report: receives each layer's mask and error.

    Raises:
        NumericalError: if a weight is not finite, before or after, or a mask misses its count.
    """
    statistics = {layer: group.statistic for group in groups for layer in group.layers}
    if splits_solves(pruner):
        shards = partition_rows(groups, pruner.solves_rows)
        found = exchanged(shards, dict(_solved(groups, shards, pruner, allocation)))
    else:
        shards = {layer: RowShards.whole(rank(), layer.shape[0]) for layer in statistics}
        found = _solved(groups, shards, pruner, allocation)
    for layer, piece in found:
        _record(layer, piece, statistics[layer], allocation, report)


def _solved(
    groups: Sequence[SharedInput],
    shards: Mapping[Layer, RowShards],
    pruner: LayerPruner,
    allocation: Allocation,
) -> Iterator[tuple[Layer, Piece]]:
    """Prune this process's rows of all groups in place; yields each of its layers and what became of it."""
    for split in (True, False):  # first what processes have to do at the same time
        for group in groups:
            own = tuple(
                layer for layer in group.layers if shards[layer].mine and shards[layer].split == split
            )
            if own:
                yield from _prune_together(group._replace(layers=own), shards, pruner, allocation).items()
            if not split and group.statistic is not None:
                group.statistic.forget()  # or a block of many experts would hold the factors of all of them


def _record(
    layer: Layer, piece: Piece, statistic: Statistic | None, allocation: Allocation, report: PruneReport
) -> None:
    """Report a layer that has been pruned, whichever process has done that."""
    kept, keep = int(piece.mask.sum()), allocation.keep[layer.name]
    if kept != keep:
        raise NumericalError(f"{layer.name}: the mask keeps {kept} weights and the allocation says {keep}")
    if layer.name in allocation.rows and piece.mask.sum(dim=1).tolist() != allocation.rows[layer.name]:
        raise NumericalError(f"{layer.name}: a row of the mask does not keep what the allocation says")
    report.masks[layer.name] = layer.oriented(piece.mask).contiguous()
    report.errors[layer.name] = piece.relative_error
    if piece.zeroed:
        report.zeroed[layer.name] = piece.zeroed
    if layer.is_routed and statistic is not None:
        report.tokens[layer.name] = 0 if statistic.assumed else statistic.tokens
    if piece.note:
        log.warning("%s: %s", layer.name, piece.note)


def by_statistic(layers: Sequence[Layer], statistics: Statistics | None) -> list[list[Layer]]:
    """The layers grouped by statistic; one by one without statistics."""
    groups: dict[int, list[Layer]] = {}
    for layer in layers:
        groups.setdefault(id(statistics[layer]) if statistics else id(layer), []).append(layer)
    return list(groups.values())


def _prune_together(
    group: SharedInput, shards: Mapping[Layer, RowShards], pruner: LayerPruner, allocation: Allocation
) -> dict[Layer, Piece]:
    """Prune this process's rows of a group's layers in place.

    The error of compensated weights is that of pruning them.
    """
    layers, statistic, drifts = group
    views = [layer.matrix()[shards[layer].own] for layer in layers]
    dense = views if drifts is None else _compensated(group, shards, views)
    parts = [shards[layer].part for layer in layers] if shards[layers[0]].split else None
    counts = {layer.name: allocation.count(layer.name) for layer in layers}
    row_weights = {
        layer.name: torch.tensor(allocation.row_weights[layer.name], dtype=torch.float32)[shards[layer].own]
        for layer in layers
        if layer.name in allocation.row_weights
    }
    copies = [one.clone() for one in dense]  # a pruner may write into what it is given
    results = solve_layers(layers, copies, statistic, pruner, counts, parts, row_weights)
    pieces = {
        layer: _piece(layer, before, pruned, statistic, pruner)
        for layer, before, pruned in zip(layers, dense, results, strict=True)
    }
    for view, pruned in zip(views, results, strict=True):  # after all that may fail
        # No negative zeros: a bitmask checkpoint would store them.
        view.copy_(pruned.weight.to(view.dtype) + 0.0)
    return pieces


def _piece(
    layer: Layer, dense: Tensor, pruned: Pruned, statistic: Statistic | None, pruner: LayerPruner
) -> Piece:
    """The pruned rows of a layer with weights [rows, cols], in the layer's dtype.

    Raises:
        NumericalError: if a weight is not finite.
    """
    dtype = layer.weight.dtype
    stored = pruned.weight.to(dtype)
    if not torch.isfinite(stored).all():
        remedy = "correct the pruner"
        if hasattr(pruner, "damping"):
            remedy = "use more calibration samples or a larger pruner.damping"
        elif dtype != torch.float32:
            remedy = f"use model.dtype=float32, or {remedy}"
        raise NumericalError(
            f"{layer.name}: pruner={pruner.name} made weights that are not finite in {dtype}; {remedy}"
        )
    energies = None
    if statistic is not None and not statistic.assumed:
        error = statistic.output_energy(stored.float() - dense.float())
        energies = (statistic.output_energy(dense), error)
    zeroed = int((pruned.mask.to(stored.device) & (stored == 0) & (dense != 0)).sum())
    return Piece(pruned.mask.cpu(), energies, pruned.note, zeroed)


def _compensated(
    group: SharedInput, shards: Mapping[Layer, RowShards], dense: Sequence[Tensor]
) -> list[Tensor]:
    """This process's rows of a group's dense weights, compensated for what the layers before have changed.

    Raises:
        NumericalError: if the Gram matrix of their inputs is not finite.
    """
    layers, statistic, drifts = group
    assert isinstance(statistic, Gram)
    assert drifts is not None
    residuals = [drifts.residuals.get(layer) for layer in layers]
    own = [
        None if residual is None else residual[shards[layer].own]
        for layer, residual in zip(layers, residuals, strict=True)
    ]
    try:
        return compensate(dense, statistic.value, drifts.inputs, own)
    except ValueError as error:
        raise NumericalError(f"{layers[0].name}: {error}") from error
