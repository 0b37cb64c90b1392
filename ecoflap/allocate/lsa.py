"""LSA (Yang et al., ICLR 2026): blocks or layers that lose much when weights go keep less.

A layer's error is that of its output when half of each row's weights are removed, one by one, the cheapest
first. Errors grow with depth as activations do, so that this mostly makes later blocks sparser.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import ClassVar

from typing_extensions import override

from ecoflap.allocate.block_ramp import BlockRamp, spread_at
from ecoflap.allocate.groups import blocks_of, layers_of
from ecoflap.allocate.options import LSAOptions
from ecoflap.allocate.parametric import Values
from ecoflap.allocate.weight_sizes import measured_layers
from ecoflap.blocks.gram import Gram
from ecoflap.blocks.input_statistics import InputStatistics
from ecoflap.blocks.statistics import Statistic
from ecoflap.errors import UserError, require_positive
from ecoflap.models.core.layers import Layer
from ecoflap.models.core.towers import Block, Tower
from ecoflap.ops import greedy_removal_error, shift_to_total
from ecoflap.prune.protocol import LayerPruner
from ecoflap.score.scores import BLOCK, LAYER

ATTENTION = re.compile("attn|attention", re.IGNORECASE)
SPREAD_OF_LAYERS = 0.07
"""The published spread at the granularities sublayer and layer."""


@dataclass(frozen=True)
class LSA(LSAOptions, BlockRamp):
    """Blocks or layers that lose much by the removal of a share of their weights keep less."""

    statistic: ClassVar[type[Statistic] | None] = Gram

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive("allocation", self, "columns")
        if not 0 < self.share < 1:
            raise UserError(f"allocation.share={self.share} is outside (0, 1); published is 0.5")

    @property
    @override
    def sparsity_per(self) -> str:
        return BLOCK if self.granularity == BLOCK else LAYER

    @override
    def published(self, sparsity: float, pruner: LayerPruner | None) -> float:
        return spread_at(sparsity) if self.granularity == BLOCK else SPREAD_OF_LAYERS

    @override
    def measure_block(self, block: Block, statistics: InputStatistics | None) -> dict[str, float]:
        """The error of each layer; of an expert that no token reaches, the mean of layers of its shape."""
        assert statistics is not None
        known, found = measured_layers(block, statistics), dict[str, float]()
        for layer in known:
            statistic = statistics[layer]
            assert isinstance(statistic, Gram)
            found[layer.name] = greedy_removal_error(
                layer.matrix(), statistic.value, self.share, self.columns
            )
            statistic.forget()  # or the matrices of all experts of a block would be in memory
        for layer in [one for one in block.layers if one.name not in found]:
            alike = [one for one in known if (one.shape, one.is_expert) == (layer.shape, True)] or known
            found[layer.name] = fmean(found[one.name] for one in alike)
        return found

    @override
    def value_of(self, block: Block, values: Values) -> float:
        """Minus the mean error of its layers; published is 1 - error / sum of errors, which the ramp scales
        to the same numbers.
        """
        return -fmean(values[layer.name] for layer in block.layers)

    @override
    def counts(self, towers: Sequence[Tower], values: Values, total: int, parameter: float) -> dict[str, int]:
        if self.granularity == BLOCK:
            return super().counts(towers, values, total, parameter)
        groups = [group for block in blocks_of(towers) for group in self._groups(block)]
        errors = {layer: fmean(values[one.name] for one in group) for group in groups for layer in group}
        layers = layers_of(towers)
        shares = _shares([layer.size for layer in layers], [errors[layer] for layer in layers], parameter)
        kept = shift_to_total([layer.size for layer in layers], shares, total)
        return {layer.name: count for layer, count in zip(layers, kept, strict=True)}

    def _groups(self, block: Block) -> list[list[Layer]]:
        """The layers of a block that share one error."""
        if self.granularity == LAYER:
            return [[layer] for layer in block.layers]
        paths = {layer: layer.name.removeprefix(block.name) for layer in block.layers}
        halves = [
            [layer for layer in block.layers if bool(ATTENTION.search(paths[layer])) == attention]
            for attention in (True, False)
        ]
        return [half for half in halves if half]


def _shares(sizes: Sequence[int], errors: Sequence[float], spread: float) -> list[float]:
    """The shares that layers keep, up to a shift: 2 lambda (u_l - mean of u) x (mean of N) / N_l.

    u_l is 0 for the largest error and 1 for the smallest. The published map moves the same number of weights
    for the same error, so the share of a small layer, such as the keys of grouped queries, moves far.
    """
    width = max(errors) - min(errors)
    if not width:
        return [0.0] * len(sizes)
    scaled = [2 * spread * (max(errors) - error) / width for error in errors]
    return [(share - fmean(scaled)) * fmean(sizes) / size for share, size in zip(scaled, sizes, strict=True)]
