"""The lines in the chart of allocations: which methods share one, and its name."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean
from typing import Any, NamedTuple

from ecoflap.sweeps.report.blocks import Blocks, allocated
from ecoflap.sweeps.report.methods import Method
from ecoflap.sweeps.report.sections import Section


class Line(NamedTuple):
    """The allocation of one or more methods at one target.

    Attributes:
        label: its name; empty if it is the only one.
        rank: index of its colour.
        seeds: the allocations of its seeds.
    """

    label: str
    rank: int
    seeds: Sequence[Blocks]

    def block_values(self, tower: str) -> list[list[float]]:
        """For each block of a tower the sparsity of each seed; empty if the tower was not pruned."""
        rows = [list(blocks[tower].values()) for blocks in self.seeds if tower in blocks]
        longest = max(map(len, rows), default=0)
        return [[row[index] for row in rows if index < len(row)] for index in range(longest)]

    def means(self, tower: str) -> list[float]:
        """For each block of a tower the mean over seeds."""
        return [fmean(values) for values in self.block_values(tower)]


Lines = Mapping[float, Sequence[Line]]
"""Target -> its allocations."""


def lines_of(section: Section, ranks: Mapping[Method, int]) -> dict[float, list[Line]]:
    """The allocations of a section, by target.

    Methods that give every block the same sparsity share a line, as a fine stage doesn't change what the
    coarse one decided.

    Args:
        section: the runs.
        ranks: index of each method's colour.
    """
    given: dict[float, dict[Method, dict[int, Blocks]]] = {}
    for method, runs in section.by_method.items():
        for run in runs:
            if blocks := allocated(run):
                given.setdefault(run.sparsity, {}).setdefault(method, {})[run.seed] = blocks
    colours: dict[str, int] = {}  # a name keeps its colour even at targets that its first method lacks
    lines = {}
    for target, allocations in sorted(given.items()):
        groups = grouped(allocations, operator.eq)
        named = zip(_names(groups), groups, strict=True)
        lines[target] = [
            Line(name, colours.setdefault(name, ranks[group[0]]), list(allocations[group[0]].values()))
            for name, group in named
        ]
    return lines


def block_counts(lines: Lines) -> dict[str, int]:
    """Number of blocks of each tower."""
    counts: dict[str, int] = {}
    for members in lines.values():
        for line in members:
            for tower in dict.fromkeys(tower for blocks in line.seeds for tower in blocks):
                counts[tower] = max(counts.get(tower, 0), len(line.block_values(tower)))
    return counts


def grouped(values: Mapping[Method, Any], equal: Callable[[Any, Any], bool]) -> list[list[Method]]:
    """Group methods with equal values, such as allocations."""
    groups: list[list[Method]] = []
    for method, value in values.items():
        same = next((group for group in groups if equal(values[group[0]], value)), None)
        groups.append([method]) if same is None else same.append(method)
    return groups


def _names(groups: Sequence[Sequence[Method]]) -> list[str]:
    """The name of each group of methods.

    It is the coarse stage that the methods share, if no other group has the same one.
    """
    coarse = [group[0].coarse if len({method.coarse for method in group}) == 1 else "" for group in groups]
    return [
        name if name and coarse.count(name) == 1 else " = ".join(method.label for method in group)
        for name, group in zip(coarse, groups, strict=True)
    ]
