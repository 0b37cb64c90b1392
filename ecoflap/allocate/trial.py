"""Prune a model in place at trial allocations, and restore it.

The weights come from the pruner of the fine stage, each time from the dense weights and from statistics of
the dense model's inputs, which are gathered once.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from ecoflap.allocate.allocation import Allocation
from ecoflap.allocate.protocol import Context
from ecoflap.blocks.layer_calls import require_calls
from ecoflap.blocks.statistics import InputStatistics, Statistic
from ecoflap.blocks.walk import walk
from ecoflap.data.batch import Batch
from ecoflap.models.core.layers import Layer
from ecoflap.models.core.prunable import PrunableModel, quiet_forward
from ecoflap.models.core.towers import Block
from ecoflap.prune.layers import solve_layers
from ecoflap.prune.protocol import LayerPruner
from ecoflap.score.scores import LAYER


@dataclass(frozen=True)
class Group:
    """Layers of one block that are pruned together, as they read the same input.

    Attributes:
        block: their block.
        layers: the layers.
        dense: their dense weights, [rows, cols] each.
        statistic: of their input; None for a pruner that uses no data.
    """

    block: Block
    layers: tuple[Layer, ...]
    dense: tuple[Tensor, ...]
    statistic: Statistic | None


class TrialPruner:
    """Prunes all layers of a model in place, again and again from the dense weights.

    Attributes:
        groups: the layers, grouped by input.
    """

    def __init__(self, model: PrunableModel, pruner: LayerPruner, groups: Sequence[Group]) -> None:
        self.groups = groups
        self._model, self._pruner = model, pruner

    @torch.no_grad()
    def solve(self, group: Group, keep: Mapping[str, int]) -> list[Tensor]:
        """The pruned weights of a group's layers, [rows, cols] each, at the given counts.

        Raises:
            NumericalError: if the pruner can't compute with the weights or the inputs.
        """
        device = self._model.device
        dense = [weight.to(device, copy=True) for weight in group.dense]
        pruned = solve_layers(group.layers, dense, group.statistic, self._pruner, keep)
        return [one.weight for one in pruned]

    def fitted(self, keep: Mapping[str, int]) -> dict[str, int]:
        """The counts nearest to the given ones that the pruner's mask can have, as the fine stage takes them.

        Raises:
            UserError: if there are none.
        """
        layers = [layer for group in self.groups for layer in group.layers if layer.name in keep]
        sizes = {layer.name: layer.size for layer in layers}
        sparsity = 1 - sum(keep.values()) / sum(sizes.values())
        return self._pruner.fitted(Allocation(dict(keep), sizes, sparsity, LAYER)).keep

    def prune(self, keep: Mapping[str, int]) -> None:
        """Prune every layer to the given counts, or the nearest that the mask can have."""
        keep = self.fitted(keep)
        for group in self.groups:
            self.write(group, self.solve(group, keep))

    def restore(self) -> None:
        """Restore the dense weights."""
        for group in self.groups:
            self.write(group, group.dense)

    def write(self, group: Group, weights: Sequence[Tensor]) -> None:
        """Replace the weights of a group's layers, [rows, cols] each."""
        placement = self._model.placement
        with placement.using(group.block):
            for layer, weight in zip(group.layers, weights, strict=True):
                layer.write(weight)
            placement.changed(group.block)

    @torch.no_grad()
    def loss(self, batches: Sequence[Batch]) -> float:
        """The mean loss per sample of the model as it is now."""
        with quiet_forward(self._model.module):
            losses = torch.cat([self._model.loss(batch).cpu().double() for batch in batches])
        return float(losses.mean())


@contextmanager
def trial_pruner(model: PrunableModel, context: Context) -> Iterator[TrialPruner]:
    """Prune a model in trials within this context; afterwards its weights are dense again, bit for bit.

    Args:
        model: dense.
        context: its pruner prunes, its calibration set gives the statistics.
    """
    trial = TrialPruner(model, context.pruner, _groups(model, context))
    try:
        yield trial
    finally:
        trial.restore()


@torch.no_grad()
def _groups(model: PrunableModel, context: Context) -> list[Group]:
    """All layers with their dense weights and the statistics of their dense inputs."""
    batches: Sequence[Batch] = []
    if context.pruner.statistic is not None:
        batches = context.samples.batches(context.batch_size)
        require_calls(model, batches, every_layer=True)
    groups: list[Group] = []
    with quiet_forward(model.module):
        for visit in walk(model, model.towers, batches, "statistics"):
            statistics = visit.measure(context.pruner.statistic, leave=bool(batches))
            sharing: dict[int, list[Layer]] = {}
            for layer in visit.block.layers:
                key = id(layer) if statistics is None else id(statistics[layer])
                sharing.setdefault(key, []).append(layer)
            with model.placement.using(visit.block):
                groups += [_group(model, visit.block, layers, statistics) for layers in sharing.values()]
    return groups


def _group(
    model: PrunableModel, block: Block, layers: Sequence[Layer], statistics: InputStatistics | None
) -> Group:
    # The weights of an offloaded block are on the device only while it is in use.
    device = model.device if model.placement.kind == "none" else torch.device("cpu")
    dense = tuple(layer.matrix().to(device, copy=True) for layer in layers)
    return Group(block, tuple(layers), dense, None if statistics is None else statistics[layers[0]])
