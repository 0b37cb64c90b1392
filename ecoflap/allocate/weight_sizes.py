"""The sizes of a block's weights by Wanda's metric."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from ecoflap.blocks.input_statistics import InputStatistics
from ecoflap.blocks.statistics import MeanSquare
from ecoflap.models.core.towers import Block
from ecoflap.ops import wanda_metric


def weight_sizes(block: Block, statistics: InputStatistics | None) -> Iterator[Tensor]:
    """|w| times the root mean square of its input, [rows, cols] per layer.

    The published norm is of all tokens. The mean over tokens does not depend on how many a layer reads, which
    differs within a block that reads another tower, and between experts.
    """
    assert statistics is not None
    for layer in block.layers:
        statistic = statistics[layer]
        assert isinstance(statistic, MeanSquare)
        yield wanda_metric(layer.matrix(), statistic.value)
