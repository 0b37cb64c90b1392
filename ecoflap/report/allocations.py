"""What the chart of allocations shows: which methods share one, and what it is called."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import NamedTuple

from ecoflap.report.blocks import Blocks, allocated
from ecoflap.report.methods import Method
from ecoflap.report.sections import Section


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
        return [[row[place] for row in rows if place < len(row)] for place in range(max(map(len, rows), default=0))]

    def means(self, tower: str) -> list[float]:
        """Per block of a tower the mean over seeds."""
        return [fmean(values) for values in self.block_values(tower)]


Lines = Mapping[float, Sequence[Line]]
"""Target -> its allocations."""


def lines_of(section: Section, ranks: Mapping[Method, int]) -> dict[float, list[Line]]:
    """The allocations of a section. Methods that gave every block the same at all targets share a line: a fine stage doesn't change an allocation."""
    given: dict[Method, dict[float, dict[int, Blocks]]] = {}
    for method, runs in section.by_method.items():
        for run in runs:
            if blocks := allocated(run):
                given.setdefault(method, {}).setdefault(run.sparsity, {})[run.seed] = blocks
    groups: list[list[Method]] = []
    for method in given:
        same = next((group for group in groups if given[group[0]] == given[method]), None)
        groups.append([method]) if same is None else same.append(method)
    lines: dict[float, list[Line]] = {target: [] for target in sorted({target for rows in given.values() for target in rows})}
    for name, group in zip(_names(groups), groups, strict=True):
        for target, seeds in given[group[0]].items():
            lines[target].append(Line(name, ranks[group[0]], list(seeds.values())))
    return lines


def block_counts(lines: Lines) -> dict[str, int]:
    """Tower -> number of blocks."""
    counts: dict[str, int] = {}
    for members in lines.values():
        for line in members:
            for tower in dict.fromkeys(tower for blocks in line.seeds for tower in blocks):
                counts[tower] = max(counts.get(tower, 0), len(line.block_values(tower)))
    return counts


def _names(groups: Sequence[Sequence[Method]]) -> list[str]:
    """What each group of methods is called: by the coarse stage that its methods share, where that is no other group's name."""
    coarse = [group[0].coarse if len({method.coarse for method in group}) == 1 else "" for group in groups]
    return [
        name if name and coarse.count(name) == 1 else " = ".join(method.label for method in group) for name, group in zip(coarse, groups, strict=True)
    ]
