"""Round an allocation to masks that keep the same number of every m weights of a layer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from fractions import Fraction
from heapq import heapify, heappop, heappush

from ecoflap.allocate.allocation import EXACT, GROUPS, Allocation
from ecoflap.errors import UserError


def in_whole_groups(allocation: Allocation, group: int) -> Allocation:
    """The allocation in which each layer keeps n of every ``group`` weights, with an n of its own.

    Counts are rounded down, and then up where most was lost, while the sum stays within that of the given
    counts: what is missing in the end is less than one weight per group of the smallest layer that could be
    rounded up. A layer that keeps anything keeps at least one weight per group.

    Args:
        allocation: any counts.
        group: weights per group; it divides the size of every layer.

    Raises:
        UserError: if one weight per group is more than the given counts.
    """
    budget = sum(allocation.keep.values())
    unit = {name: size // group for name, size in allocation.sizes.items()}
    wanted = {name: Fraction(keep, unit[name]) for name, keep in allocation.keep.items()}
    chosen = {
        name: max(int(share), min(1, keep))
        for (name, share), keep in zip(wanted.items(), allocation.keep.values(), strict=True)
    }
    room = _lower(chosen, wanted, unit, budget - sum(count * unit[name] for name, count in chosen.items()))
    if room < 0:
        raise UserError(
            f"pruner.mask=n:{group} keeps at least one of every {group} weights of a layer,"
            f" {budget - room:,} weights in all, and the allocation keeps {budget:,}; lower the sparsity"
        )
    _raise(chosen, wanted, unit, room)
    keep = {name: count * unit[name] for name, count in chosen.items()}
    missed = allocation.total == EXACT and keep != allocation.keep
    total = GROUPS if missed else allocation.total
    return replace(allocation, keep=keep, total=total)


# Heaps, as mixtures of experts have thousands of layers: (the key, the place among equal ones, the name).


def _lower(chosen: dict[str, int], wanted: Mapping[str, Fraction], unit: Mapping[str, int], room: int) -> int:
    """Lower the counts of layers that lost least, in place, until there is room for all.

    There is not at first if some layers were below one weight per group.

    Returns:
        The weights that there is room for; below zero if every layer is at one weight per group.
    """
    lost = [
        (wanted[name] - count, place, name) for place, (name, count) in enumerate(chosen.items()) if count > 1
    ]
    heapify(lost)
    while room < 0 and lost:
        least, place, name = heappop(lost)
        chosen[name] -= 1
        room += unit[name]
        if chosen[name] > 1:
            heappush(lost, (least + 1, place, name))
    return room


def _raise(
    chosen: dict[str, int], wanted: Mapping[str, Fraction], unit: Mapping[str, int], room: int
) -> None:
    """Raise the counts of layers that lost most, in place, while there is room."""
    gained = [(count - wanted[name], place, name) for place, (name, count) in enumerate(chosen.items())]
    heapify(gained)
    while gained and gained[0][0] < 0:
        least, place, name = heappop(gained)
        if unit[name] <= room:  # what has no room now will have none later
            chosen[name] += 1
            room -= unit[name]
            heappush(gained, (least + 1, place, name))
