"""Prune a model in place at trial allocations, and restore it.

The weights come from the pruner of the fine stage, each time from the dense weights and from statistics of
the dense model's inputs, which are gathered once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ecoflap.allocate.allocation import Allocation
from ecoflap.allocate.groups import blocks_of
from ecoflap.allocate.protocol import Context
from ecoflap.allocate.row_weights import RowWeights
from ecoflap.blocks.layer_calls import require_calls
from ecoflap.blocks.statistics import Statistic
from ecoflap.blocks.walk import walk
from ecoflap.data.batch import Batch
from ecoflap.distributed.collectives import assign, gathered, share, tensor_from
from ecoflap.distributed.processes import rank, size
from ecoflap.models.core.forward_modes import quiet_forward
from ecoflap.models.core.layers import Layer
from ecoflap.models.core.prunable import PrunableModel
from ecoflap.models.core.towers import Block
from ecoflap.ops import Keep
from ecoflap.prune.layers import by_statistic
from ecoflap.prune.protocol import LayerPruner
from ecoflap.prune.row_shards import operations, splits_solves
from ecoflap.prune.solve import solve_layers
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

    @property
    def cost(self) -> float:
        """The operations of a solve with a Gram matrix, up to a factor."""
        return operations(sum(map(len, self.dense)), self.dense[0].shape[1])


IN_TURN = 4
"""How many groups each process solves before all exchange what they have: about a block's."""


class TrialPruner:
    """Prunes all layers of a model in place, again and again from the dense weights.

    Attributes:
        groups: the layers, grouped by input.
        row_weights: by which the rows of a layer share its count; empty, as at first, if they share it
            evenly.
    """

    def __init__(self, model: PrunableModel, pruner: LayerPruner, groups: Sequence[Group]) -> None:
        self.groups = groups
        self.row_weights = RowWeights()
        self._model, self._pruner = model, pruner

    @torch.no_grad()
    def solve(self, group: Group, keep: Mapping[str, Keep]) -> list[Tensor]:
        """The pruned weights of a group's layers, [rows, cols] each, at the given counts.

        Raises:
            NumericalError: if the pruner can't compute with the weights or the inputs.
        """
        device, statistic = self._model.device, group.statistic
        dense = [weight.to(device, copy=True) for weight in group.dense]
        if statistic is not None:
            statistic.move(device)
        by_row = self._by_row(group, dense, keep)
        factors = self.factors([layer.name for layer in group.layers])
        pruned = solve_layers(group.layers, dense, statistic, self._pruner, by_row, row_weights=factors)
        if statistic is not None:
            statistic.move(idle_device(self._model))
        return [one.weight for one in pruned]

    def factors(self, layers: Iterable[str]) -> dict[str, Tensor]:
        """{layer: the weights of its rows, [rows]}, where the weights of all rows compete."""
        if self._pruner.rule.by_row:
            return {}
        found = {layer: self.row_weights.of(layer) for layer in layers}
        return {layer: weights.float() for layer, weights in found.items() if weights is not None}

    def rows(self, keep: Mapping[str, Keep]) -> dict[str, Tensor]:
        """{layer: how many weights each of its rows keeps, [rows]}, where they don't share evenly."""
        found = {
            name: count
            for group in self.groups
            for name, count in self._by_row(group, group.dense, keep).items()
            if isinstance(count, Tensor)
        }
        return {name: found[name] for name in keep if name in found}

    def _by_row(self, group: Group, dense: Sequence[Tensor], keep: Mapping[str, Keep]) -> Mapping[str, Keep]:
        """The counts of a group's layers, shared by the rows of each as the row weights say."""
        counts: dict[str, Keep] = {}
        for layer, weight in zip(group.layers, dense, strict=True):
            count = keep[layer.name]
            if isinstance(count, int) and self._pruner.rule.by_row:
                count = self.row_weights.counts(layer.name, weight, group.statistic, count)
            counts[layer.name] = count
        return counts

    def fitted(self, keep: Mapping[str, int]) -> dict[str, int]:
        """The counts nearest to the given ones that the pruner's mask can have, as the fine stage takes them.

        Raises:
            UserError: if there are none.
        """
        layers = [layer for group in self.groups for layer in group.layers if layer.name in keep]
        sizes = {layer.name: layer.size for layer in layers}
        sparsity = 1 - sum(keep.values()) / sum(sizes.values())
        return self._pruner.fitted(Allocation(dict(keep), sizes, sparsity, LAYER)).keep

    def prune(self, keep: Mapping[str, Keep]) -> None:
        """Prune every layer to the given counts, or the nearest that the mask can have."""
        of_layers = {name: count for name, count in keep.items() if isinstance(count, int)}
        keep = {**keep, **(self.fitted(of_layers) if of_layers else {})}
        for group, weights in self.of_each(lambda group: self.solve(group, keep)):
            self.write(group, weights)

    def of_each(self, work: Callable[[Group], Sequence[Tensor]]) -> Iterator[tuple[Group, list[Tensor]]]:
        """What a function returns for each group, which one process of the run computes and gives the others.

        Solves with Gram matrices take long enough for that; for other pruners, each process computes all.

        Args:
            work: returns a tensor [rows, cols] for each layer of a group, which is converted to the dtype and
                device of the layer's dense weights.

        Yields:
            Each group and what is returned for it, the same bits in all processes.
        """
        exchanging = splits_solves(self._pruner)
        step = IN_TURN * size() if exchanging else 1
        for start in range(0, len(self.groups), step):
            groups = self.groups[start : start + step]
            owners = assign([group.cost for group in groups]) if exchanging else [rank()]
            found = {
                place: [one.to(dense) for one, dense in zip(work(group), group.dense, strict=True)]
                for place, group in enumerate(groups)
                if owners[place] == rank()
            }
            for place, group in enumerate(groups):
                own = found.pop(place, list(group.dense))
                yield group, [tensor_from(one, owners[place]) for one in own] if exchanging else own

    def write(self, group: Group, weights: Sequence[Tensor]) -> None:
        """Replace the weights of a group's layers, [rows, cols] each."""
        placement = self._model.placement
        with placement.using(group.block):
            for layer, weight in zip(group.layers, weights, strict=True):
                layer.write(weight)
            placement.changed(group.block)

    def loss_at(self, keep: Mapping[str, Keep], batches: Sequence[Batch]) -> float | None:
        """The mean loss per sample of the model pruned to the given counts; None if it is not finite."""
        self.prune(keep)
        loss = self.loss(batches)
        return loss if math.isfinite(loss) else None

    def loss(self, batches: Sequence[Batch]) -> float:
        """The mean loss per sample of the model as it is now."""
        return mean_loss(self._model, batches)


@torch.no_grad()
def mean_loss(model: PrunableModel, batches: Sequence[Batch]) -> float:
    """The mean loss per sample, summed in fp64 on the CPU, as accelerators may have none."""
    with quiet_forward(model.module):
        own = [model.loss(batch).cpu().double() for batch in share(batches)]
    losses = [loss for one in gathered(own) for loss in one]
    return float(torch.cat(losses).mean())


@contextmanager
def trial_pruner(model: PrunableModel, context: Context) -> Iterator[TrialPruner]:
    """Prune a model in trials within this context; afterwards its weights are dense again, bit for bit.

    Args:
        model: dense.
        context: its pruner prunes, in its form for trials; its calibration set gives the statistics.
    """
    with restoring(model) as dense:
        yield TrialPruner(model, context.pruner.for_trials, _groups(model, context, dense))


class LazyTrial(ExitStack):
    """A context as of ``trial_pruner``, which is entered when the pruner is first used."""

    def __init__(self, model: PrunableModel, context: Context) -> None:
        """Take what ``trial_pruner`` does."""
        super().__init__()
        self._model, self._context = model, context

    @cached_property
    def pruner(self) -> TrialPruner:
        """Prunes the model, whose weights are dense again after this context."""
        return self.enter_context(trial_pruner(self._model, self._context))


@contextmanager
def restoring(model: PrunableModel) -> Iterator[dict[Layer, Tensor]]:
    """Restore the weights of all layers afterwards, bit for bit.

    Yields:
        {layer: a copy of its weights, [rows, cols]}.
    """
    placement, blocks, device = model.placement, blocks_of(model.towers), idle_device(model)
    copies: dict[Layer, Tensor] = {}
    for block in blocks:
        with placement.using(block):
            copies |= {layer: layer.matrix().to(device, copy=True) for layer in block.layers}
    try:
        yield copies
    finally:
        for block in blocks:
            with placement.using(block):
                for layer in block.layers:
                    layer.write(copies[layer])
                placement.changed(block)


def idle_device(model: PrunableModel) -> torch.device:
    """Where dense weights and statistics are between their uses: the CPU if the model is offloaded."""
    return model.device if model.placement.kind == "none" else torch.device("cpu")


@torch.no_grad()
def _groups(model: PrunableModel, context: Context, dense: Mapping[Layer, Tensor]) -> list[Group]:
    """All layers with their dense weights and the statistics of their dense inputs."""
    batches: Sequence[Batch] = []
    if context.pruner.statistic is not None:
        batches = context.samples.batches(context.batch_size)
        require_calls(model, batches, every_layer=True)
    groups: list[Group] = []
    with quiet_forward(model.module):
        for visit in walk(model, model.towers, batches, "statistics", tokens=context.tokens):
            statistics = visit.measure(context.pruner.statistic, leave=bool(batches))
            for layers in by_statistic(visit.block.layers, statistics):
                statistic = None if statistics is None else statistics[layers[0]]
                if statistic is not None:
                    statistic.move(idle_device(model))
                copies = tuple(dense[layer] for layer in layers)
                groups.append(Group(visit.block, tuple(layers), copies, statistic))
    return groups
