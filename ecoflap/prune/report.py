"""What pruning did: to each block, for the lines that are printed, and to the whole model, for the steps that
follow.
"""

from __future__ import annotations

from collections.abc import MutableMapping
from dataclasses import dataclass, field

from torch import Tensor

from ecoflap.storage.masks import PackedMasks


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
        errors: {layer: sqrt(||(W' - W) X||^2 / ||W X||^2)}. Exact where a Gram matrix was gathered; for
            Wanda, columns are taken as uncorrelated; null where no data was looked at.
        blocks: one report per block.
    """

    masks: MutableMapping[str, Tensor] = field(default_factory=PackedMasks)
    errors: dict[str, float | None] = field(default_factory=dict)
    blocks: list[BlockReport] = field(default_factory=list)
