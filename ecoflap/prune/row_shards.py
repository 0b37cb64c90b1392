"""Partition the rows of a block's layers among the processes, so that the busiest one has least to do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from ecoflap.blocks.drifts import SharedInput
from ecoflap.blocks.gram import Gram
from ecoflap.distributed.collectives import assign, summed
from ecoflap.distributed.processes import rank, size
from ecoflap.models.core.layers import Layer
from ecoflap.ops import Part
from ecoflap.prune.protocol import LayerPruner

INVERSE = 0.2
"""What inverting a Gram matrix [cols, cols] takes, as a share of what solving for cols rows takes."""
FEWEST = 8
"""The fewest rows of a layer that a process solves for."""


class RowShards(NamedTuple):
    """The shards of a layer's rows that the processes solve for: consecutive ones, by rank.

    Attributes:
        ends: behind the last row of each process; a process without rows ends where the one before does.
    """

    ends: tuple[int, ...]

    @classmethod
    def whole(cls, owner: int, rows: int) -> RowShards:
        """All rows in one process."""
        return cls(tuple(rows if process >= owner else 0 for process in range(size())))

    @classmethod
    def even(cls, rows: int) -> RowShards:
        """As many rows in each process, up to one."""
        return cls(tuple(rows * (process + 1) // size() for process in range(size())))

    def span(self, process: int) -> slice:
        """The rows of a process."""
        return slice(self.ends[process - 1] if process else 0, self.ends[process])

    @property
    def own(self) -> slice:
        """The rows of this process."""
        return self.span(rank())

    @property
    def owners(self) -> list[int]:
        """The ranks of the processes that have rows."""
        return [process for process in range(len(self.ends)) if _length(self.span(process))]

    @property
    def part(self) -> Part:
        """What the rows of this process are to a pruner with ``solves_rows``."""
        return Part(self.own.start, self.ends[-1], summed)

    @property
    def split(self) -> bool:
        """Whether several processes have rows."""
        return len(self.owners) > 1

    @property
    def mine(self) -> bool:
        """Whether this process has rows."""
        return rank() in self.owners


def splits_solves(pruner: LayerPruner) -> bool:
    """Whether the processes of the run split a pruner's solves: those with a Gram matrix take long."""
    return pruner.statistic is Gram and size() > 1


def operations(rows: int, cols: int) -> float:
    """Of solving for some rows that read one input, with the inverse of its Gram matrix, up to a factor."""
    return cols**2 * (rows + INVERSE * cols) if rows else 0.0


def partition_rows(groups: Sequence[SharedInput], solves_rows: bool) -> dict[Layer, RowShards]:
    """The shards of each layer's rows.

    Whole layers go to one process each, the largest first. If the pruner allows it, the largest ones are
    split by rows instead, as many as make the busiest process least busy: each of the processes that
    share a layer has to invert the Gram matrix of its input.

    Args:
        groups: layers that share an input, the same in all processes.
        solves_rows: whether rows of a layer can be solved for separately.
    """
    costs = {layer: float(layer.size * layer.shape[1]) for group in groups for layer in group.layers}
    large = [cost for layer, cost in costs.items() if solves_rows and layer.shape[0] >= FEWEST * size()]
    plans = [_plan(costs, smallest) for smallest in [float("inf"), *sorted(set(large), reverse=True)]]
    return min(plans, key=lambda plan: _busiest(groups, plan))


def _plan(costs: Mapping[Layer, float], smallest: float) -> dict[Layer, RowShards]:
    """Layers of at least some cost split by rows, the others whole."""
    split = {layer for layer, cost in costs.items() if cost >= smallest}
    split = {layer for layer in split if layer.shape[0] >= FEWEST * size()}
    whole = [layer for layer in costs if layer not in split]
    owners = dict(zip(whole, assign([costs[layer] for layer in whole]), strict=True))
    return {
        layer: RowShards.even(layer.shape[0])
        if layer in split
        else RowShards.whole(owners[layer], layer.shape[0])
        for layer in costs
    }


def _busiest(groups: Sequence[SharedInput], plan: Mapping[Layer, RowShards]) -> float:
    """The operations of the busiest process, up to a factor."""
    busy = [0.0] * size()
    for group in groups:
        for process in range(size()):
            rows = sum(_length(plan[layer].span(process)) for layer in group.layers)
            busy[process] += operations(rows, group.layers[0].shape[1])
    return max(busy)


def _length(span: slice) -> int:
    return span.stop - span.start
