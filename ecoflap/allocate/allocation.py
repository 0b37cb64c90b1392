"""How many weights each layer keeps."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from itertools import chain
from numbers import Integral
from typing import Any

import torch

from ecoflap.errors import UserError, nearest
from ecoflap.models.core.layers import Layer
from ecoflap.ops import Keep

EXACT, GROUPS, UNITS = "exact", "groups", "units"
TOTALS = (EXACT, "as_given", GROUPS, UNITS)
LEAST, MOST = 1e-4, 1e4
"""The range of row weights: rows times these are still far from the ends of fp32."""


@dataclass(frozen=True)
class Allocation:
    """The number of weights that each layer keeps; by default, their sum meets the target exactly.

    Attributes:
        keep: {layer: number of weights to keep}, in pruning order.
        sizes: {layer: number of weights}.
        target: the requested sparsity.
        granularity: what shares one sparsity: row, layer, block, tower or model.
        total: how the counts add up: ``exact`` (to the target), ``as_given`` (by a file), ``groups`` (to
            whole groups of a mask n:m) or ``units`` (to whole structural units).
        details: what the allocator did to find the counts, as plain JSON values.
        in_trials: whether models pruned from dense inputs decided on the counts.
        rows: {layer: number of weights that each of its rows keeps}, where they don't share evenly.
        row_weights: {layer: a factor of each of its rows}, where the weights of all rows compete at their
            size times the factor.
    """

    keep: dict[str, int]
    sizes: dict[str, int]
    target: float
    granularity: str
    total: str = EXACT
    details: dict[str, Any] = field(default_factory=dict)
    in_trials: bool = False
    rows: dict[str, list[int]] = field(default_factory=dict)
    row_weights: dict[str, list[float]] = field(default_factory=dict)

    def count(self, layer: str) -> Keep:
        """The number of weights that a layer keeps, or that each of its rows does."""
        return torch.tensor(self.rows[layer]) if layer in self.rows else self.keep[layer]

    @property
    def sparsity(self) -> float:
        """Realised sparsity over all layers."""
        return 1 - sum(self.keep.values()) / sum(self.sizes.values())

    @property
    def uneven(self) -> bool:
        """Whether a layer keeps another share of its weights than the target's, or rows differ."""
        share = 1 - as_written(self.target)
        same = {name: share * size for name, size in self.sizes.items()}
        return self.keep != same or bool(self.rows or self.row_weights)

    def inside(self, path: str) -> list[str]:
        """The layers in a module, by its path; layers that have since been removed are among them."""
        return [name for name in self.sizes if name.startswith(f"{path}.")]

    def sparsity_of(self, layers: list[str]) -> float:
        """Realised sparsity over some layers."""
        return 1 - sum(self.keep[name] for name in layers) / sum(self.sizes[name] for name in layers)


def keep_total(sizes: list[int], sparsity: float) -> int:
    """The number of weights to keep of all: floor(sum of sizes x (1 - sparsity))."""
    return int(sum(sizes) * (1 - as_written(sparsity)))


def exact_totals(towers: Sequence[Sequence[Layer]], sparsity: float) -> tuple[int, int]:
    """The numbers of weights that meet a target exactly: of the model, and of its towers, summed."""
    sizes = [[layer.size for layer in layers] for layers in towers]
    return keep_total([*chain(*sizes)], sparsity), sum(keep_total(one, sparsity) for one in sizes)


def as_written(sparsity: float) -> Fraction:
    """The sparsity as the decimal that was written, so that 1 - 0.6 is exactly 2/5."""
    # The limit reads decimals of thirds as such: 0.3333333333 is 1/3.
    return Fraction(str(sparsity)).limit_denominator(10**9)


def check_sparsity(sparsity: float) -> None:
    """Refuse a target outside [0, 1).

    Raises:
        UserError: if the sparsity is outside [0, 1).
    """
    if not 0 <= sparsity < 1:
        raise UserError(
            f"sparsity={sparsity} is outside [0, 1); it is the share of prunable weights to remove, such"
            " as 0.6"
        )


def check_counts(allocation: Allocation, layers: Sequence[Layer], source: str = "the allocation") -> None:
    """Refuse an allocation that was made for other layers.

    Args:
        allocation: how many weights its layers keep.
        layers: those of the model that is pruned.
        source: where it comes from, for the message.

    Raises:
        UserError: if it has no count for a layer, one too many, or one that a layer can't keep.
    """
    misfit = next(_misfits(allocation, layers), None)
    if misfit is not None:
        raise UserError(
            f"{source} was made for other layers: {misfit}; check towers and skip_layers, or allocate for the"
            " model that is pruned"
        )


def check_total(allocation: Allocation, towers: Sequence[Sequence[Layer]], source: str, instead: str) -> None:
    """Refuse counts whose sum differs from the exact total, of the model or summed over its towers.

    Counts that were rounded to whole groups may miss it by less than a group of a layer.

    Args:
        allocation: how many weights its layers keep; its counts must add up to the target, or nearly so.
        towers: the layers of each tower of the model.
        source: where it comes from, for the message.
        instead: what takes the counts as they are, for the message.

    Raises:
        UserError: if it does.
    """
    totals = exact_totals(towers, allocation.target)
    found = sum(allocation.keep.values())
    missing = min(abs(total - found) for total in totals)
    rounded = allocation.total == GROUPS and found <= max(totals)
    if missing and not (rounded and missing < max(allocation.sizes.values()) // 2):
        raise UserError(
            f"{source} says target {allocation.target:g}, which keeps {totals[0]:,} weights,"
            f" and its counts keep {found:,} (a sparsity of {allocation.sparsity:.4f}); correct the counts,"
            f" or take them as they are with {instead}"
        )


def check_allocated(
    allocation: Allocation, towers: Sequence[Sequence[Layer]], sparsity: float, part: str
) -> Allocation:
    """What a part returns, with plain ints; refused if it misfits the layers, or misses the target unsaid.

    Args:
        allocation: how many weights the layers keep.
        towers: the layers of each tower of the model.
        sparsity: the target.
        part: the allocator, or the pruner that allocates, as on the command line, for messages.

    Raises:
        UserError: if a count is missing, too many or impossible, or the allocation is of another target, adds
            up in no known way, or is exact by its word alone.
    """
    layers = [*chain(*towers)]
    misfit = next(_misfits(allocation, layers), None)
    if misfit is not None:
        raise UserError(f"{part} returned counts that don't fit the model: {misfit}; correct it")
    if abs(allocation.target - sparsity) > 1e-9:
        raise UserError(
            f"{part} returned an allocation for the target {allocation.target:g}, and"
            f" sparsity={sparsity:g} was asked for; correct it"
        )
    if allocation.total not in TOTALS:
        raise UserError(
            f"{part} returned an allocation whose total is {allocation.total!r}; correct it: it is one of"
            f" {', '.join(TOTALS)}"
        )
    found, totals = sum(allocation.keep.values()), exact_totals(towers, allocation.target)
    if allocation.total == EXACT and found not in totals:
        raise UserError(
            f"{part} returned counts that keep {found:,} weights, and sparsity={sparsity:g}"
            f" keeps {totals[0]:,}; correct it: its counts add up to keep_total(sizes, sparsity)"
        )
    keep = {name: int(count) for name, count in allocation.keep.items()}  # also those of NumPy
    return replace(allocation, keep=keep, sizes={layer.name: layer.size for layer in layers})


def _misfits(allocation: Allocation, layers: Sequence[Layer]) -> Iterator[str]:
    """What does not fit the layers of a model; the counts of rows are looked at last."""
    sizes = {layer.name: layer.size for layer in layers}
    for name, size in sizes.items():
        kept, known = allocation.keep.get(name), allocation.sizes.get(name)
        if kept is None:
            yield f"it has no entry for {name} (nearest: {nearest(name, allocation.keep)})"
        elif known != size:
            yield f"{name} keeps {kept} of {known}, but has {size} weights here"
        elif not isinstance(kept, Integral) or not 0 <= kept <= size:
            yield f"{name} keeps {kept} of {size}, which is not a whole number from 0 to {size}"
    for name in (*allocation.keep, *allocation.rows, *allocation.row_weights):
        if name not in sizes:
            yield f"{name} is not a layer to prune here (nearest: {nearest(name, sizes)})"
    for layer in layers:
        rows, cols = layer.shape
        if not _rows_fit(allocation, layer):
            yield (
                f"the counts of rows of {layer.name} are not {rows} whole numbers up to {cols} that add up to"
                f" {allocation.keep[layer.name]}"
            )
        if not _row_weights_fit(allocation, layer):
            yield f"the row weights of {layer.name} are not {rows} numbers from {LEAST:g} to {MOST:g}"


def _rows_fit(allocation: Allocation, layer: Layer) -> bool:
    """Whether the counts of a layer's rows, if there are any, are possible and add up to the layer's."""
    rows, cols = layer.shape
    counts = allocation.rows.get(layer.name)
    if counts is None:
        return True
    if not isinstance(counts, list) or len(counts) != rows:
        return False
    whole = all(isinstance(count, int) and 0 <= count <= cols for count in counts)
    return whole and sum(counts) == allocation.keep[layer.name]


def _row_weights_fit(allocation: Allocation, layer: Layer) -> bool:
    """Whether the weights of a layer's rows, if there are any, are possible."""
    weights = allocation.row_weights.get(layer.name)
    if weights is None:
        return True
    if not isinstance(weights, list) or len(weights) != layer.shape[0]:
        return False
    return all(type(one) in (int, float) and LEAST <= one <= MOST for one in weights)
