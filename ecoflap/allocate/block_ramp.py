"""Allocators whose blocks keep a share that is affine in one number per block."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import numpy as np
from typing_extensions import override

from ecoflap.allocate.groups import blocks_of, size_of, split_all
from ecoflap.allocate.parametric import Parametric, Values
from ecoflap.blocks.statistics import MeanSquare, Statistic
from ecoflap.models.core.prunable import PrunableModel
from ecoflap.models.core.towers import Block, Tower
from ecoflap.ops import ramp

CANDIDATES = (0.0, 0.02, 0.04, 0.06, 0.08, 0.1, 0.12, 0.15, 0.2, 0.25)
"""The spreads that ``auto`` tries."""
SPARSITIES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)
SPREADS = (0.06, 0.02, 0.04, 0.02, 0.04, 0.1, 0.15, 0.12)
"""What DLP and LSA use at these sparsities (layersp/blk.py of LSA's repository)."""


class BlockRamp(Parametric):
    """Measure one number of each block, and let the blocks of the largest keep the largest shares."""

    parameter: ClassVar[str] = "spread"
    statistic: ClassVar[type[Statistic] | None] = MeanSquare

    @override
    def candidates(self, model: PrunableModel, sparsity: float) -> Sequence[float]:
        return CANDIDATES

    @abstractmethod
    def value_of(self, block: Block, values: Values) -> float:
        """A block's number, in any unit; the larger, the more it keeps."""

    @override
    def counts(self, towers: Sequence[Tower], values: Values, total: int, parameter: float) -> dict[str, int]:
        blocks = blocks_of(towers)
        groups = [block.layers for block in blocks]
        numbers = [self.value_of(block, values) for block in blocks]
        return split_all(groups, ramp([size_of(layers) for layers in groups], numbers, total, parameter))


def spread_at(sparsity: float) -> float:
    """The spread of DLP and LSA at a sparsity, on straight lines between the published ones."""
    return float(np.interp(sparsity, SPARSITIES, SPREADS))
