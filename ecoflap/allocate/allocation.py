"""How many weights each layer keeps."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch

from ecoflap.errors import UserError, nearest
from ecoflap.models.core.layers import Layer
from ecoflap.models.core.towers import Tower
from ecoflap.ops import Keep

EXACT, GROUPS, UNITS = "exact", "groups", "units"
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

    def inside(self, path: str) -> list[str]:
        """The layers in a module, by its path; layers that have since been removed are among them."""
        return [name for name in self.sizes if name.startswith(f"{path}.")]

    def sparsity_of(self, layers: list[str]) -> float:
        """Realised sparsity over some layers."""
        return 1 - sum(self.keep[name] for name in layers) / sum(self.sizes[name] for name in layers)


def keep_total(sizes: list[int], sparsity: float) -> int:
    """The number of weights to keep of all: floor(sum of sizes x (1 - sparsity))."""
    return int(sum(sizes) * (1 - as_written(sparsity)))


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


def read_file(path: str) -> Allocation:
    """Read an allocation that a run saved.

    Raises:
        UserError: if there is no such file, or it holds no allocation.
    """
    file = Path(path).expanduser()
    try:
        value = json.loads(file.read_text())
        return Allocation(
            dict(value["keep"]),
            dict(value["sizes"]),
            float(value["target"]),
            value["granularity"],
            GROUPS if value.get("total") == GROUPS else EXACT,
            in_trials=bool(value.get("in_trials", False)),
            rows=dict(value.get("rows", {})),
            row_weights=dict(value.get("row_weights", {})),
        )
    except (FileNotFoundError, IsADirectoryError):
        raise UserError(
            f"allocation.path={path}: there is no such file; each run with the allocate step writes"
            " allocation.json into its folder"
        ) from None
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"allocation.path={path} is not an allocation file ({type(error).__name__}: {error})"
        ) from None


def fitted(allocation: Allocation, towers: tuple[Tower, ...], path: str, total: str) -> Allocation:
    """Check an allocation from a file against the model.

    Args:
        allocation: the contents of the file.
        towers: the towers of the model.
        path: the file, for messages.
        total: ``exact`` if the counts must add up to the target, up to the whole groups to which they were
            rounded for a mask n:m; ``as_given`` if they need not.

    Returns:
        The allocation with its layers in the model's order.

    Raises:
        UserError: if it was made for other layers, or its counts have to meet the target and do not.
    """
    layers = [layer for tower in towers for layer in tower.layers]
    sizes = {layer.name: layer.size for layer in layers}
    for name, size in sizes.items():
        if name not in allocation.keep:
            raise UserError(
                f"allocation.path={path} has no entry for {name}; it was made for other layers (nearest:"
                f" {nearest(name, allocation.keep)})"
            )
        if (
            allocation.sizes.get(name) != size
            or not isinstance(allocation.keep[name], int)
            or not 0 <= allocation.keep[name] <= size
        ):
            raise UserError(
                f"allocation.path={path}: {name} keeps {allocation.keep[name]} of"
                f" {allocation.sizes.get(name)}, but has {size} weights here"
            )
    named = (*allocation.keep, *allocation.rows, *allocation.row_weights)
    unknown = next((name for name in named if name not in sizes), None)
    if unknown is not None:
        raise UserError(
            f"allocation.path={path}: {unknown} is not a layer to prune here (nearest:"
            f" {nearest(unknown, sizes)}); check towers and skip_layers"
        )
    for layer in layers:
        misfit = _misfit_of_rows(allocation, layer)
        if misfit is not None:
            raise UserError(f"allocation.path={path}: {misfit}")
    found = replace(
        allocation,
        keep={name: allocation.keep[name] for name in sizes},
        sizes=sizes,
        total=allocation.total if total == EXACT else total,
        rows={name: allocation.rows[name] for name in sizes if name in allocation.rows},
        row_weights={name: allocation.row_weights[name] for name in sizes if name in allocation.row_weights},
    )
    if total == EXACT:
        _check_total(found, towers, path)
    return found


def _check_total(allocation: Allocation, towers: tuple[Tower, ...], path: str) -> None:
    """Refuse counts whose sum differs from the exact total, of the model or summed over its towers.

    Counts that were rounded to whole groups may miss it by less than a group of a layer.

    Raises:
        UserError: if it does.
    """
    of_towers = [[layer.size for layer in tower.layers] for tower in towers]
    wanted = keep_total([size for sizes in of_towers for size in sizes], allocation.target)
    wanted_by_tower = sum(keep_total(sizes, allocation.target) for sizes in of_towers)
    found = sum(allocation.keep.values())
    missing = min(abs(wanted - found), abs(wanted_by_tower - found))
    rounded = allocation.total == GROUPS and found <= max(wanted, wanted_by_tower)
    if missing and not (rounded and missing < max(allocation.sizes.values()) // 2):
        raise UserError(
            f"allocation.path={path} says target {allocation.target:g}, which keeps {wanted:,} weights, and"
            f" its counts keep {found:,} (a sparsity of {allocation.sparsity:.4f}); correct the counts, or"
            " take them as they are with allocation.total=as_given"
        )


def _misfit_of_rows(allocation: Allocation, layer: Layer) -> str | None:
    """What does not fit a layer in the counts or weights of its rows; None if all does."""
    rows, cols = layer.shape
    if not _rows_fit(allocation, layer):
        return (
            f"the counts of rows of {layer.name} are not {rows} whole numbers up to {cols} that add up to"
            f" {allocation.keep[layer.name]}"
        )
    if not _row_weights_fit(allocation, layer):
        return f"the row weights of {layer.name} are not {rows} numbers from {LEAST:g} to {MOST:g}"
    return None


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


def check_counts(allocation: Allocation, layers: Sequence[Layer]) -> None:
    """Refuse an allocation that was made for other layers.

    Raises:
        UserError: if it has no count for a layer, one too many, or one that a layer can't keep.
    """
    sizes = {layer.name: layer.size for layer in layers}
    for name in {**sizes, **allocation.keep}:
        size, kept, known = sizes.get(name), allocation.keep.get(name), allocation.sizes.get(name)
        if size is None or kept is None or known != size or not 0 <= kept <= size:
            there = "has no count" if kept is None else f"keeps {kept} of {known} weights"
            here = "is not pruned" if size is None else f"has {size}"
            raise UserError(
                f"the allocation was made for other layers: {name} {there} there, and {here} here; allocate"
                " for the model that is pruned, with its towers and skip_layers"
            )
    for layer in layers:
        misfit = _misfit_of_rows(allocation, layer)
        if misfit is not None:
            raise UserError(
                f"the allocation was made for other layers: {misfit}; allocate for the model that is pruned"
            )
