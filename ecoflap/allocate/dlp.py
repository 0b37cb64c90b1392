"""DLP (Chen et al., ICML 2025): blocks with larger weights keep less.

A weight's size is |w| times the root mean square of its input, and a block's that of its median weight. Sizes
grow with depth as activations do, so that this mostly makes later blocks sparser.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from typing_extensions import override

from ecoflap.allocate.block_ramp import BlockRamp, spread_at
from ecoflap.allocate.groups import size_of
from ecoflap.allocate.options import DLPOptions
from ecoflap.allocate.parametric import Values
from ecoflap.allocate.weight_sizes import measured_layers, weight_sizes
from ecoflap.blocks.input_statistics import InputStatistics
from ecoflap.models.core.towers import Block
from ecoflap.prune.protocol import LayerPruner


@dataclass(frozen=True)
class DLP(DLPOptions, BlockRamp):
    """Blocks with larger weights keep less."""

    @override
    def published(self, sparsity: float, pruner: LayerPruner | None) -> float:
        return spread_at(sparsity)

    @override
    def measure_block(self, block: Block, statistics: InputStatistics | None) -> dict[str, float]:
        """The median or mean size of its weights."""
        assert statistics is not None
        layers = measured_layers(block, statistics)
        sizes = weight_sizes(layers, statistics)
        if self.average == "mean":
            return {block.name: sum(float(layer.sum()) for layer in sizes) / size_of(layers)}
        return {block.name: float(torch.cat([layer.flatten() for layer in sizes]).median())}

    @override
    def value_of(self, block: Block, values: Values) -> float:
        """Minus its size; published is 1 - size / sum of sizes, which the ramp scales to the same numbers."""
        return -values[block.name]
