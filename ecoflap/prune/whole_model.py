"""Prune with a pruner of the whole model, and check what it has done."""

from __future__ import annotations

import time

import torch

from ecoflap.allocate.allocation import UNITS, Allocation, check_allocated
from ecoflap.data.calibration_set import CalibrationSet
from ecoflap.errors import NumericalError, UserError
from ecoflap.models.core.layers import Layer
from ecoflap.models.core.prunable import PrunableModel
from ecoflap.prune.driver import warn_of_zeroed
from ecoflap.prune.protocol import ModelPruner
from ecoflap.prune.report import BlockReport, OnBlock, PruneReport


def prune_whole(
    model: PrunableModel,
    calibration: CalibrationSet | None,
    pruner: ModelPruner,
    sparsity: float,
    on_block: OnBlock,
    seed: int = 0,
) -> tuple[Allocation, PruneReport]:
    """Let a pruner prune a model, in place; see ``ModelPruner.prune``.

    Once all layers are checked, ``on_block`` is called with the report of each block: the pruner's own, if it
    makes some, or one with its sparsity and the time since pruning began.

    Raises:
        UserError: if it returns counts that don't fit the model or the target, or no mask for a layer.
        NumericalError: if a weight is not finite, a removed one not zero, or a mask misses its count.
    """
    towers = [tower.layers for tower in model.towers]
    zeros = {layer.name: _zeros(layer) for layer in model.layers}
    started = time.perf_counter()
    allocation, report = _pair(pruner.prune(model, calibration, sparsity, seed=seed), pruner.name)
    seconds = time.perf_counter() - started
    units = allocation.total == UNITS  # whole matrices may be gone, and others have their names
    if not units:
        allocation = check_allocated(allocation, towers, sparsity, f"pruner={pruner.name}")
    elif (kept := sum(model.sizes.values())) != (said := sum(allocation.keep.values())):
        raise NumericalError(f"pruner={pruner.name} left {kept:,} weights and its allocation says {said:,}")
    for layer in model.layers:
        keep = layer.size if units else allocation.keep[layer.name]
        _check(layer, keep, report, pruner.name)
        report.errors.setdefault(layer.name, None)
        if not units and (zeroed := _zeros(layer) - (layer.size - keep) - zeros[layer.name]) > 0:
            report.zeroed[layer.name] = zeroed
    report.blocks = report.blocks or _report_blocks(model, allocation, seconds)
    for block in report.blocks:
        on_block(block)
    warn_of_zeroed(model, report, pruner.name)
    return allocation, report


def _pair(returned: object, pruner: str) -> tuple[Allocation, PruneReport]:
    """What a pruner returned.

    Raises:
        UserError: if it is something else than counts and a report.
    """
    if isinstance(returned, tuple) and len(returned) == 2:
        allocation, report = returned
        if isinstance(allocation, Allocation) and isinstance(report, PruneReport):
            return allocation, report
    raise UserError(
        f"pruner={pruner} returned a {type(returned).__name__}; correct it: prune returns an Allocation and a"
        " PruneReport"
    )


def _report_blocks(model: PrunableModel, allocation: Allocation, seconds: float) -> list[BlockReport]:
    """One report per block, each with the time since pruning began."""
    blocks = []
    for tower in model.towers:
        for block in tower.blocks:
            names = allocation.inside(block.name)
            realised = allocation.sparsity_of(names) if names else 0.0
            blocks.append(BlockReport(tower.name, block.name, realised, None, seconds))
    return blocks


def _zeros(layer: Layer) -> int:
    return int((layer.weight == 0).sum())


def _check(layer: Layer, keep: int, report: PruneReport, pruner: str) -> None:
    """Refuse a layer that is not pruned to ``keep`` weights as its mask says.

    Raises:
        UserError: if it has no mask of its form.
        NumericalError: if it is pruned otherwise.
    """
    name, weight = layer.name, layer.weight
    mask = report.masks.get(name)
    if mask is None or mask.shape != weight.shape or mask.dtype != torch.bool:
        raise UserError(
            f"pruner={pruner} reports no bool mask {list(weight.shape)} for {name}; correct the"
            " pruner: its report has one for each layer, True where a weight is kept"
        )
    mask = mask.to(weight.device)
    if (kept := int(mask.sum())) != keep:
        raise NumericalError(f"{name}: pruner={pruner} keeps {kept} weights and its allocation says {keep}")
    if not bool(torch.isfinite(weight).all()):
        raise NumericalError(
            f"{name}: pruner={pruner} made weights that are not finite in {weight.dtype}; use"
            " model.dtype=float32, or correct the pruner"
        )
    if bool((weight[~mask] != 0).any()):
        raise NumericalError(f"{name}: weights that pruner={pruner} removes are not zero; correct the pruner")
