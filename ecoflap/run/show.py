"""What a run prints: the towers to prune, a line per block, the sparsity per tower, and the metrics."""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Iterable, Mapping

from ecoflap.allocate.allocation import Allocation
from ecoflap.console.tables import table
from ecoflap.console.telemetry import peak_memory_bytes
from ecoflap.models.core.layers import Layer
from ecoflap.models.core.prunable import PrunableModel
from ecoflap.models.core.skipped import Skipped
from ecoflap.prune.report import BlockReport
from ecoflap.run.alike import join_names
from ecoflap.run.invocation import runs_in_sequence

log = logging.getLogger(__name__)

DENSE_IN_BLOCKS = 0.1
"""Warn if more than this share of the weights in the blocks stays dense."""
_said: set[str] = set()


def said_before(what: str) -> bool:
    """Whether an earlier job of this process's sweep has said the same; False in a single run."""
    if not runs_in_sequence() or what not in _said:
        _said.add(what)
        return False
    return True


def show_model(model: PrunableModel, sparsity: float) -> None:
    """Print the towers with their layers, and what stays dense and why; warn if that is much.

    In a sweep, what an earlier job has printed is left out.
    """
    if not said_before(f"{model.name} {[(tower.name, len(tower.layers)) for tower in model.towers]}"):
        _show_towers(model)
    warn_of_dense_blocks(model, sparsity)


def _show_towers(model: PrunableModel) -> None:
    total, prunable = model.parameter_count(), _size(model.layers)
    rows = [
        (tower.name, tower.path, len(tower.blocks), len(tower.layers), f"{_size(tower.layers):,}")
        for tower in model.towers
    ]
    title = f"{model.name}: {total:,} parameters, {prunable:,} prunable ({100 * prunable / total:.1f} %)"
    table(title, ["tower", "blocks of", "blocks", "layers", "weights"], rows)
    weights, tensors = Counter[str](), Counter[str]()
    for skipped in model.skipped:
        weights[skipped.reason] += skipped.size
        tensors[skipped.reason] += 1
    if weights:
        dense = [(reason, tensors[reason], f"{size:,}") for reason, size in weights.most_common()]
        table("left dense", ["reason", "tensors", "weights"], dense)


def _size(layers: Iterable[Layer]) -> int:
    return sum(layer.size for layer in layers)


def warn_of_dense_blocks(model: PrunableModel, sparsity: float) -> None:
    """Warn if much of the blocks stays dense, such as nine tenths of a mixture of experts.

    The sparsity then removes a smaller share of the model than it suggests.
    """
    dense, weights = model.dense_in_blocks(), model.block_weights()
    if dense.total() <= DENSE_IN_BLOCKS * weights:
        return
    share = 1 - dense.total() / weights
    removed = sparsity * _size(model.layers)
    reason, size = dense.most_common(1)[0]
    log.warning(
        "only %.1f %% of the weights in the blocks can be pruned (most of the rest, %s weights: %s); "
        "sparsity=%g removes %.1f %% of the model's weights",
        100 * share,
        f"{size:,}",
        reason,
        sparsity,
        100 * removed / model.parameter_count(),
    )


def show_layers(model: PrunableModel) -> None:
    """Print the layers of each tower with their shapes, and the tensors that stay dense, for each reason.

    Layers and tensors that differ only in the numbers in their names share a line.
    """
    for tower in model.towers:
        inside = [(layer.name.removeprefix(f"{tower.path}."), tuple(layer.shape)) for layer in tower.layers]
        rows = [
            (one.name, *one.what, one.count, f"{one.count * math.prod(one.what):,}")
            for one in join_names(inside)
        ]
        title = f"{tower.name}: layers in {tower.path}"
        table(title, ["layer", "rows", "cols", "layers", "weights"], rows)
    by_reason: dict[str, list[Skipped]] = {}
    for skipped in model.skipped:
        by_reason.setdefault(skipped.reason, []).append(skipped)
    for reason, tensors in by_reason.items():
        alike = join_names((skipped.name, skipped.size) for skipped in tensors)
        dense = [(f"{one.count * one.what:,}", one.count, one.name) for one in alike]
        table(f"left dense: {reason}", ["weights", "tensors", "name"], dense)


def show_block(block: BlockReport) -> None:
    """Log a line about a pruned block."""
    error = "" if block.error is None else f"  error {block.error:.3f}"
    log.info(
        "%-10s block %-3s  sparsity %.3f%s  %.2f s  %.2f GiB",
        block.tower,
        block.block.rpartition(".")[2],
        block.sparsity,
        error,
        block.seconds,
        peak_memory_bytes() / 2**30,
    )


def show_allocation(model: PrunableModel, allocation: Allocation) -> None:
    """Print the allocated sparsity of each tower, with the range over its blocks."""
    rows = []
    for tower in model.towers:
        if inside := [names for block in tower.blocks if (names := allocation.inside(block.name))]:
            blocks = [allocation.sparsity_of(names) for names in inside]
            whole = allocation.sparsity_of([name for names in inside for name in names])
            rows.append((tower.name, whole, min(blocks), max(blocks)))
    rows.append(("all", allocation.sparsity, min(row[2] for row in rows), max(row[3] for row in rows)))
    title = f"sparsity (target {allocation.target:g}, per {allocation.granularity})"
    table(title, ["tower", "sparsity", "least block", "most block"], rows)


def show_metrics(task: str, metrics: Mapping[str, Mapping[str, float]]) -> None:
    """Print one row per metric, with one column per state of the model (dense, pruned, finetuned)."""
    rows = [(name, *(values[name] for values in metrics.values())) for name in next(iter(metrics.values()))]
    table(task, ["metric", *metrics], rows)
