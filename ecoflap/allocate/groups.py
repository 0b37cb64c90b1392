"""Groups of layers that share one sparsity, and the parts of a model that share one budget."""

from __future__ import annotations

from collections.abc import Sequence

from ecoflap.models.core.layers import Layer
from ecoflap.models.core.prunable import PrunableModel
from ecoflap.models.core.towers import Block, Tower
from ecoflap.ops import proportional
from ecoflap.score.scores import BLOCK, TOWER


def parts(model: PrunableModel, scope: str) -> list[tuple[Tower, ...]]:
    """The towers that share a budget: all (``scope=model``), or each by itself (``scope=tower``)."""
    towers = tuple(tower for tower in model.towers if tower.layers)
    return [towers] if scope == "model" else [(tower,) for tower in towers]


def blocks_of(towers: Sequence[Tower]) -> list[Block]:
    """The blocks of some towers that have layers."""
    return [block for tower in towers for block in tower.blocks if block.layers]


def layers_of(towers: Sequence[Tower]) -> list[Layer]:
    """The layers of some towers, in pruning order."""
    return [layer for tower in towers for layer in tower.layers]


def group_layers(towers: Sequence[Tower], granularity: str) -> list[Sequence[Layer]]:
    """The layers that share one sparsity, group by group.

    Args:
        towers: the towers.
        granularity: layer, block or tower.
    """
    if granularity == TOWER:
        return [tower.layers for tower in towers if tower.layers]
    if granularity == BLOCK:
        return [block.layers for block in blocks_of(towers)]
    return [[layer] for layer in layers_of(towers)]


def size_of(layers: Sequence[Layer]) -> int:
    """The number of weights of some layers."""
    return sum(layer.size for layer in layers)


def split(layers: Sequence[Layer], budget: int) -> dict[str, int]:
    """Give all layers of a group the same sparsity, with counts that add up to the budget exactly."""
    counts = proportional([layer.size for layer in layers], budget)
    return {layer.name: count for layer, count in zip(layers, counts, strict=True)}


def split_all(groups: Sequence[Sequence[Layer]], budgets: Sequence[int]) -> dict[str, int]:
    """Split the budget of each group among its layers."""
    return {
        name: count
        for layers, budget in zip(groups, budgets, strict=True)
        for name, count in split(layers, budget).items()
    }
