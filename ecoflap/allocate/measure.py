"""Measure the blocks of the dense model one by one, each with statistics of its layers' inputs."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch

from ecoflap.allocate.protocol import Context
from ecoflap.blocks.input_statistics import InputStatistics
from ecoflap.blocks.layer_calls import require_calls
from ecoflap.blocks.statistics import Statistic
from ecoflap.blocks.walk import walk
from ecoflap.data.batch import Batch
from ecoflap.errors import NumericalError
from ecoflap.models.core.forward_modes import quiet_forward
from ecoflap.models.core.prunable import PrunableModel
from ecoflap.models.core.towers import Block

MeasureBlock = Callable[[Block, InputStatistics | None], dict[str, float]]
"""Given a block and the statistics of its layers' inputs: {block or layer: its value}."""


@torch.no_grad()
def measure_blocks(
    model: PrunableModel, context: Context | None, statistic: type[Statistic] | None, measure: MeasureBlock
) -> dict[str, float]:
    """The values of all blocks, or of their layers, in pruning order.

    Args:
        model: dense.
        context: its calibration set runs through the model, if a statistic is gathered.
        statistic: of the inputs of each layer; None to look at weights alone.
        measure: called with one block at a time, whose weights are in place.

    Raises:
        UserError: if no sample reaches a layer.
        NumericalError: if a value is not finite.
    """
    batches: Sequence[Batch] = []
    if statistic is not None:
        assert context is not None
        batches = context.samples.batches(context.batch_size)
        require_calls(model, batches, every_layer=True)
    found: dict[str, float] = {}
    tokens = "all" if context is None else context.tokens
    with quiet_forward(model.module):
        for visit in walk(model, model.towers, batches, "allocate", tokens=tokens):
            statistics = visit.measure(statistic, leave=bool(batches))
            if visit.block.layers:
                with model.placement.using(visit.block):
                    found |= measure(visit.block, statistics)
    for name, value in found.items():
        if not math.isfinite(value):
            raise NumericalError(
                f"{name}: what the allocation measures there is {value}; check the weights, and the"
                " activations on the calibration data"
            )
    return found
