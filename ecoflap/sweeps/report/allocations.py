"""What the chart of allocations shows: which methods share one, and what it is called."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import NamedTuple

from ecoflap.sweeps.report.blocks import Blocks, allocated
from ecoflap.sweeps.report.methods import Method
from ecoflap.sweeps.report.sections import Section


class Line(NamedTuple):
    """The allocation of one or more methods at one target.

    Attributes:
        label: its name; none where it is the only one.
        rank: number that its colour goes by.
        seeds: the allocations that it is the mean of.
    """

    label: str
    rank: int
    seeds: Sequence[Blocks]

    def block_values(self, tower: str) -> list[list[float]]:
        """Per block of a tower the sparsity of each seed; empty where the tower was not pruned."""
        rows = [list(blocks[tower].values()) for blocks in self.seeds if tower in blocks]
        return [
            [row[place] for row in rows if place < len(row)]
            for place in range(max(map(len, rows), default=0))
        ]

    def means(self, tower: str) -> list[float]:
        """Per block of a tower the mean over seeds."""
        return [fmean(values) for values in self.block_values(tower)]


Lines = Mapping[float, Sequence[Line]]
"""Target -> its allocations."""


def lines_of(section: Section, ranks: Mapping[Method, int]) -> dict[float, list[Line]]:
    """The allocations of a section. Methods that give every block the same share a line: a fine stage doesn't
    change what the coarse one decided.
    """
    given: dict[float, dict[Method, dict[int, Blocks]]] = {}
    for method, runs in section.by_method.items():
        for run in runs:
            if blocks := allocated(run):
                given.setdefault(run.sparsity, {}).setdefault(method, {})[run.seed] = blocks
    colours: dict[str, int] = {}  # a name keeps its colour where its first method has no run
    lines = {}
    for target, allocations in sorted(given.items()):
        groups = _alike(allocations)
        named = zip(_names(groups), groups, strict=True)
        lines[target] = [
            Line(name, colours.setdefault(name, ranks[group[0]]), list(allocations[group[0]].values()))
            for name, group in named
        ]
    return lines


def block_counts(lines: Lines) -> dict[str, int]:
    """Tower -> number of blocks."""
    counts: dict[str, int] = {}
    for members in lines.values():
        for line in members:
            for tower in dict.fromkeys(tower for blocks in line.seeds for tower in blocks):
                counts[tower] = max(counts.get(tower, 0), len(line.block_values(tower)))
    return counts


def _alike(allocations: Mapping[Method, dict[int, Blocks]]) -> list[list[Method]]:
    """Methods with equal allocations together."""
    groups: list[list[Method]] = []
    for method, seeds in allocations.items():
        same = next((group for group in groups if allocations[group[0]] == seeds), None)
        groups.append([method]) if same is None else same.append(method)
    return groups


def _names(groups: Sequence[Sequence[Method]]) -> list[str]:
    """What each group of methods is called: by the coarse stage that its methods share, where that is no
    other group's name.
    """
    coarse = [group[0].coarse if len({method.coarse for method in group}) == 1 else "" for group in groups]
    return [
        name if name and coarse.count(name) == 1 else " = ".join(method.label for method in group)
        for name, group in zip(coarse, groups, strict=True)
    ]
