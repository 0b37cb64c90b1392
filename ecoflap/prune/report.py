"""Reports of pruning: of each block, for the log, and of the whole model, for later steps."""

from __future__ import annotations

from collections.abc import Callable, MutableMapping
from dataclasses import dataclass, field

from torch import Tensor

from ecoflap.storage.masks import PackedMasks

NOTABLE = 0.001
"""The share of the prunable weights from which zeros that the masks keep are worth a warning."""


@dataclass(frozen=True)
class BlockReport:
    """How one block was pruned.

    Attributes:
        tower: the name of its tower.
        block: its name.
        sparsity: realised sparsity.
        error: relative output error, mean over its layers; None without data.
        seconds: the time that it took.
    """

    tower: str
    block: str
    sparsity: float
    error: float | None
    seconds: float


OnBlock = Callable[[BlockReport], None]


@dataclass
class PruneReport:
    """What was removed.

    Attributes:
        masks: {layer: mask on the CPU, oriented as the parameter is stored, True where kept}.
        errors: {layer: relative output error sqrt(||(W' - W) X||^2 / ||W X||^2)}. A Gram matrix gives it
            exactly, mean squares give it for uncorrelated columns; None for a pruner that uses no data.
        tokens: {layer of an expert: how many tokens were routed to it}; empty for a pruner that uses no data.
        zeroed: {layer: how many weights its mask keeps that pruning made zero}, where there are some.
        blocks: one report per block, in pruning order.
    """

    masks: MutableMapping[str, Tensor] = field(default_factory=PackedMasks)
    errors: dict[str, float | None] = field(default_factory=dict)
    tokens: dict[str, int] = field(default_factory=dict)
    zeroed: dict[str, int] = field(default_factory=dict)
    blocks: list[BlockReport] = field(default_factory=list)
