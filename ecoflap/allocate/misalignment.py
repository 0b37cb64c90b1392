"""How much pruning a block changes the relative sizes of its layers' inputs: the measure of NeuronAL."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.linalg import vector_norm

from ecoflap.allocate.allocation import Allocation
from ecoflap.allocate.trial import restoring
from ecoflap.blocks.input_statistics import InputStatistics
from ecoflap.blocks.statistics import MeanSquare
from ecoflap.blocks.walk import walk
from ecoflap.data.batch import Batch
from ecoflap.models.core.forward_modes import quiet_forward
from ecoflap.models.core.layers import Layer
from ecoflap.models.core.prunable import PrunableModel
from ecoflap.prune.layers import prune_layers
from ecoflap.prune.protocol import LayerPruner
from ecoflap.prune.report import PruneReport


@torch.no_grad()
def measure_misalignment(
    model: PrunableModel,
    pruner: LayerPruner,
    batches: Sequence[Batch],
    allocation: Allocation,
    tokens: str = "all",
) -> dict[str, float]:
    """Prune the model as the fine stage would, compare the activations of each block, and restore the model.

    A block is run twice on the outputs of pruned blocks, dense and pruned. With a the root mean square of
    each column of a layer's inputs [cols], and a' the same in the pruned block, the layer contributes

        || a / sum(a) - a' / sum(a') ||_2 / cols

    so that layers that read the block's own input contribute nothing.

    Args:
        model: dense; its weights are unchanged afterwards, bit for bit.
        pruner: prunes the layers of each block, with statistics of the inputs of the dense block.
        batches: of the calibration set.
        allocation: how many weights each layer keeps.
        tokens: which tokens count in statistics, see ``ecoflap.blocks.token_choice.choose_tokens``.

    Returns:
        {tower: the sum over its layers}.
    """
    found = {tower.name: 0.0 for tower in model.towers if tower.layers}
    with restoring(model), quiet_forward(model.module):
        for visit in walk(model, model.towers, batches, "allocate", tokens=tokens):
            dense = visit.measure(MeanSquare, leave=False)
            if dense is None:  # a block without layers
                visit.leave()
                continue
            statistics: InputStatistics | None = dense
            if pruner.statistic is not MeanSquare:
                statistics = visit.measure(pruner.statistic, leave=False) if pruner.statistic else None
            with model.placement.using(visit.block):
                prune_layers(visit.block.layers, statistics, pruner, allocation, PruneReport())
                model.placement.changed(visit.block)
            pruned = visit.measure(MeanSquare, leave=True)
            assert pruned is not None
            found[visit.tower.name] += sum(
                float(vector_norm(_shares(dense, layer) - _shares(pruned, layer))) / layer.shape[1]
                for layer in visit.block.layers
            )
    return found


def _shares(statistics: InputStatistics, layer: Layer) -> Tensor:
    """The relative sizes a / sum(a) of a layer's inputs, [cols], fp64 on the CPU.

    Zeros for an input of zeros, and for a layer that no sample reaches.
    """
    if layer not in statistics.of:
        return torch.zeros(layer.shape[1], dtype=torch.float64)
    statistic = statistics[layer]
    assert isinstance(statistic, MeanSquare)
    sizes = statistic.value.cpu().double().sqrt()
    total = sizes.sum()
    return sizes / total if total != 0 else sizes
