"""OWL (Yin et al., ICML 2024): blocks with more outliers keep more.

A weight's size is |w| times the root mean square of its input; a block's share of outliers is that of
the sizes above ``outlier`` times their mean, over all of the block's layers together.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from typing_extensions import override

from ecoflap.allocate.block_ramp import BlockRamp
from ecoflap.allocate.groups import size_of
from ecoflap.allocate.options import OWLOptions
from ecoflap.allocate.parametric import Values
from ecoflap.allocate.weight_sizes import measured_layers, weight_sizes
from ecoflap.blocks.input_statistics import InputStatistics
from ecoflap.errors import UserError
from ecoflap.models.core.towers import Block


@dataclass(frozen=True)
class OWL(OWLOptions, BlockRamp):
    """Blocks with more outliers keep more."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (math.isfinite(self.outlier) and self.outlier > 0):
            raise UserError(f"allocation.outlier={self.outlier} must be a number above 0, such as 5")

    @override
    def measure_block(self, block: Block, statistics: InputStatistics | None) -> dict[str, float]:
        """The share of outliers in percent."""
        assert statistics is not None
        layers = measured_layers(block, statistics)
        weights = size_of(layers)
        mean = sum(float(sizes.sum()) for sizes in weight_sizes(layers, statistics)) / weights
        above = sum(int((sizes > self.outlier * mean).sum()) for sizes in weight_sizes(layers, statistics))
        return {block.name: 100 * above / weights if math.isfinite(mean) else mean}

    @override
    def value_of(self, block: Block, values: Values) -> float:
        """Its share of outliers."""
        return values[block.name]
