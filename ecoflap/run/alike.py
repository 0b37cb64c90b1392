"""Join the names of things that differ only in their numbers: ``layers.0-31.mlp.down_proj.weight``."""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

What = TypeVar("What", bound=Hashable)

NUMBER = re.compile(r"(?:(?<=\.)|^)\d+(?=\.|$)")


@dataclass(frozen=True)
class Alike(Generic[What]):
    """Things that differ only in the numbers in their names.

    Attributes:
        name: their name, with ranges such as ``0-2,4`` for its numbers.
        what: what they have in common.
        count: how many they are.
    """

    name: str
    what: What
    count: int


def join_names(named: Iterable[tuple[str, What]]) -> list[Alike[What]]:
    """Join names whose things have something in common, in the order of the first of each.

    The numbers of a joined name stand for all combinations of their values: where these are not all there,
    the names are joined into several.

    Args:
        named: (name, what it has in common with others), such as the shape of a layer.
    """
    groups: dict[tuple[str, What], list[tuple[str, ...]]] = {}
    for name, what in named:
        groups.setdefault((NUMBER.sub("{}", name), what), []).append(tuple(NUMBER.findall(name)))
    found = []
    for (pattern, what), numbers in groups.items():
        counts = dict.fromkeys(numbers, 1)
        for place in reversed(range(len(numbers[0]))):
            counts = _joined_at(place, counts)
        found += [Alike(pattern.format(*ranges), what, count) for ranges, count in counts.items()]
    return found


def _joined_at(place: int, counts: dict[tuple[str, ...], int]) -> dict[tuple[str, ...], int]:
    """Join the rows that agree in all places but one."""
    rows: dict[tuple[tuple[str, ...], tuple[str, ...], int], list[int]] = {}
    for row, count in counts.items():
        rows.setdefault((row[:place], row[place + 1 :], count), []).append(int(row[place]))
    return {
        (*before, ranges(values), *after): count * len(values)
        for (before, after, count), values in rows.items()
    }


def ranges(values: Sequence[int]) -> str:
    """Numbers as text: 0, 1, 2 and 4 as ``0-2,4``."""
    runs: list[list[int]] = []
    for value in sorted(values):
        if runs and value == runs[-1][-1] + 1:
            runs[-1].append(value)
        else:
            runs.append([value])
    return ",".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)
