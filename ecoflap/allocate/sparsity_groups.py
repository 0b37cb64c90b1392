"""What shares one sparsity in a search: layers, or one row of a layer; their counts and their marginals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor
from typing_extensions import override

from ecoflap.allocate.groups import group_layers, size_of
from ecoflap.allocate.marginals import Counts
from ecoflap.models.core.layers import Layer
from ecoflap.models.core.prunable import PrunableModel
from ecoflap.ops import Keep, round_in_turn, round_to_total

ROW = "row"


class SparsityGroups(Protocol):
    """Groups of weights, each with one sparsity.

    Attributes:
        by_row: whether the groups are rows.
        sizes: number of weights of each group, [groups], fp64.
        finest: the smallest change of a sparsity that changes a count of each group, [groups] or a scalar.
    """

    by_row: bool
    sizes: Tensor
    finest: Tensor

    def counts(self, point: Tensor, total: int | None = None) -> dict[str, Keep]:
        """The counts of all layers, in pruning order, at some sparsities.

        Args:
            point: the sparsities, [groups].
            total: the sum of the counts; None for the nearest counts that the mask can have.
        """

    def marginals(self, gain: Mapping[str, Tensor], counts: Counts) -> list[float]:
        """The fall of the loss per weight that each group keeps in addition.

        Args:
            gain: {layer: the fall of the loss when it keeps more instead of fewer weights}, [1], or [rows].
            counts: what is more and what is fewer.
        """


class LayerGroups(SparsityGroups):
    """Layers that share one sparsity, such as those of a block, or each by itself."""

    by_row = False

    def __init__(self, model: PrunableModel, granularity: str, varying: int | None) -> None:
        """Group the layers.

        Args:
            model: the model.
            granularity: layer, block or tower.
            varying: m of a mask n:m with an n of each layer; None for other masks.
        """
        self._names = [layer.name for layer in model.layers]
        self._groups: list[Sequence[Layer]] = group_layers(model.towers, granularity)
        self._varying = varying
        self.sizes = torch.tensor([size_of(group) for group in self._groups], dtype=torch.float64)
        # A mask n:M has no count nearer than one more or one fewer of every M weights.
        self.finest = torch.tensor(1 / varying if varying else 0.0, dtype=torch.float64)

    @override
    def counts(self, point: Tensor, total: int | None = None) -> dict[str, Keep]:
        layers = [
            (layer, 1 - float(sparsity))
            for sparsity, group in zip(point, self._groups, strict=True)
            for layer in group
        ]
        exact = [layer.size * share for layer, share in layers]
        units = [layer.size // self._varying if self._varying else 1 for layer, _ in layers]
        counts = [round(count / unit) * unit for count, unit in zip(exact, units, strict=True)]
        if total is not None:
            counts = round_to_total(exact, [layer.size for layer, _ in layers], total)
        found = {layer.name: count for (layer, _), count in zip(layers, counts, strict=True)}
        return {name: found[name] for name in self._names}

    @override
    def marginals(self, gain: Mapping[str, Tensor], counts: Counts) -> list[float]:
        between = {name: int(more - counts.fewer[name]) for name, more in counts.more.items()}
        return [
            sum(gain[layer.name].item() for layer in group)
            / max(1, sum(between[layer.name] for layer in group))
            for group in self._groups
        ]


class RowGroups(SparsityGroups):
    """The rows of all layers, each with a sparsity of its own; a group is a row."""

    by_row = True

    def __init__(self, model: PrunableModel) -> None:
        """Number the rows of all layers, one layer after the other."""
        self._layers = model.layers
        self._rows = [layer.shape[0] for layer in model.layers]
        cols = torch.tensor([layer.shape[1] for layer in model.layers])
        self._cols = cols.repeat_interleave(torch.tensor(self._rows))
        self.sizes = self._cols.double()
        self.finest = 1 / self.sizes

    @override
    def counts(self, point: Tensor, total: int | None = None) -> dict[str, Keep]:
        exact = self._cols * (1 - point)
        # Rows are short and many are equally sparse: rounded one by one, they would miss the budget together.
        parts = round_in_turn(exact, round(float(exact.sum())) if total is None else total).split(self._rows)
        return {layer.name: part for layer, part in zip(self._layers, parts, strict=True)}

    @override
    def marginals(self, gain: Mapping[str, Tensor], counts: Counts) -> list[float]:
        found = [
            gain[layer.name] / (counts.more[layer.name] - counts.fewer[layer.name]).clamp(min=1)  # type: ignore[union-attr]
            for layer in self._layers
        ]
        values: list[float] = torch.cat(found).tolist()
        return values
