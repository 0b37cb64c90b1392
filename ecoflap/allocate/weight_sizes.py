"""The sizes of a block's weights by Wanda's metric."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import Tensor

from ecoflap.blocks.input_statistics import InputStatistics
from ecoflap.blocks.statistics import MeanSquare
from ecoflap.models.core.layers import Layer
from ecoflap.models.core.towers import Block
from ecoflap.ops import wanda_metric


def measured_layers(block: Block, statistics: InputStatistics) -> list[Layer]:
    """The layers whose inputs are known: all but the experts that no token reaches; all if there are none.

    The inputs that are assumed for those have a scale of their own, which is that of no activation.
    """
    known = [layer for layer in block.layers if not statistics[layer].assumed]
    return known or list(block.layers)


def weight_sizes(layers: Sequence[Layer], statistics: InputStatistics) -> Iterator[Tensor]:
    """|w| times the root mean square of its input, [rows, cols] per layer.

    The published norm is of all tokens. The mean over tokens does not depend on how many a layer reads, which
    differs within a block that reads another tower, and between experts.
    """
    for layer in layers:
        statistic = statistics[layer]
        assert isinstance(statistic, MeanSquare)
        yield wanda_metric(layer.matrix(), statistic.value)
