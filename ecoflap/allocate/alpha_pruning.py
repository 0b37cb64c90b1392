"""AlphaPruning (Lu et al., NeurIPS 2024): blocks whose spectra have heavier tails keep more; needs no data.

alpha is the exponent of a power law for the tail of a layer's spectrum; a block's is the mean of its layers'.
The sparsity of a block is c (1 - epsilon + 2 epsilon u), u its alpha scaled to 0..1, c such that the total
meets the target. No sparsity passes 1: what a block can't give up, the others do, in proportion.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import ClassVar

from typing_extensions import override

from ecoflap.allocate.groups import blocks_of, size_of, split_all
from ecoflap.allocate.options import AUTO, AlphaPruningOptions
from ecoflap.allocate.parametric import Parametric, Values
from ecoflap.blocks.input_statistics import InputStatistics
from ecoflap.errors import UserError
from ecoflap.models.core.prunable import PrunableModel
from ecoflap.models.core.towers import Block, Tower
from ecoflap.ops import eigenvalues, tail_exponent, water_fill
from ecoflap.prune.protocol import LayerPruner

CANDIDATES = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5)
"""The epsilons that ``auto`` tries."""
WITH_DATA, WITHOUT_DATA = 0.2, 0.3
"""The published epsilons: for Wanda and SparseGPT, and for magnitude."""


@dataclass(frozen=True)
class AlphaPruning(AlphaPruningOptions, Parametric):
    """Blocks whose spectra have heavier tails keep more."""

    parameter: ClassVar[str] = "epsilon"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.epsilon is not None and self.epsilon != AUTO and float(self.epsilon) > 1:
            raise UserError(f"allocation.epsilon={self.epsilon} is outside 0 (uniform) to 1")

    @override
    def published(self, sparsity: float, pruner: LayerPruner | None) -> float:
        return WITHOUT_DATA if pruner is not None and pruner.statistic is None else WITH_DATA

    @override
    def candidates(self, model: PrunableModel, sparsity: float) -> Sequence[float]:
        return CANDIDATES

    @override
    def measure_block(self, block: Block, statistics: InputStatistics | None) -> dict[str, float]:
        """The mean alpha of its layers; nothing if none has a spectrum to fit, such as layers of zeros.

        NaN if a weight is not finite, as a singular value decomposition fails there, or drops it.
        """
        if not all(layer.matrix().isfinite().all() for layer in block.layers):
            return {block.name: math.nan}
        exponents = [tail_exponent(eigenvalues(layer.matrix()), self.tail) for layer in block.layers]
        finite = [exponent for exponent in exponents if math.isfinite(exponent)]
        return {block.name: fmean(finite)} if finite else {}

    @override
    def counts(self, towers: Sequence[Tower], values: Values, total: int, parameter: float) -> dict[str, int]:
        blocks = blocks_of(towers)
        sizes = [size_of(block.layers) for block in blocks]
        known = [values[block.name] for block in blocks if block.name in values]
        middle = fmean(known) if known else 0.0
        alphas = [values.get(block.name, middle) for block in blocks]
        width = max(alphas) - min(alphas)
        scaled = [(alpha - min(alphas)) / width if width else 0.5 for alpha in alphas]
        removal = [
            size * (1 - parameter + 2 * parameter * one) for size, one in zip(sizes, scaled, strict=True)
        ]
        removed = water_fill(sizes, removal, sum(sizes) - total, cap=1.0)
        kept = [size - count for size, count in zip(sizes, removed, strict=True)]
        return split_all([block.layers for block in blocks], kept)
