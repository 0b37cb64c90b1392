"""The evolutionary search of EvoPress (Sieberling et al., ICML 2025) over levels of layers.

A layer at level k keeps k steps of weights fewer than at level 0. A flip lowers one layer by a level and
raises another one, so that the levels of a part of the model always add up to zero. In each generation the
parent gets offspring of one to three flips, small numbers more often. Stages of selection with fewer and
fewer survivors measure them on more and more samples, drawn anew; in the last one the parent competes, too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

Levels = tuple[int, ...]
Draw = Callable[[int], int]
"""Draws a whole number in 0..count - 1."""
Fitness = Callable[[Sequence[Levels], Sequence[int]], Sequence[float]]
"""Given candidates and the indices of samples: a number per candidate, the smaller the better."""

TRIES = 100
"""Mutations per wanted offspring after which fewer distinct ones have to do."""


@dataclass(frozen=True)
class Stage:
    """A stage of selection.

    Attributes:
        survivors: how many candidates it leaves.
        samples: how many samples they are measured on.
    """

    survivors: int
    samples: int


@dataclass(frozen=True)
class Evolution:
    """How a parent's offspring are made and selected.

    Attributes:
        lowest: the lowest level of each layer.
        highest: the highest one.
        parts: the part of the model that each layer belongs to.
        offspring: how many a parent gets.
        stages: of selection; the last one leaves one candidate.
        samples: how many there are to draw from.
    """

    lowest: Levels
    highest: Levels
    parts: Levels
    offspring: int
    stages: Sequence[Stage]
    samples: int

    def generation(self, parent: Levels, draw: Draw, fitness: Fitness) -> tuple[Levels, float]:
        """One generation; returns the next parent and its fitness.

        NaN never wins: where nothing finite is measured, the parent stays.
        """
        candidates, best = self.mutations(parent, draw), math.inf
        for number, stage in enumerate(self.stages, start=1):
            if number == len(self.stages) and parent not in candidates:
                candidates.append(parent)
            chosen = _distinct(self.samples, stage.samples, draw)
            values = [math.inf if math.isnan(value) else value for value in fitness(candidates, chosen)]
            order = sorted(range(len(candidates)), key=values.__getitem__)[: stage.survivors]
            candidates, best = [candidates[index] for index in order], values[order[0]]
        return (candidates[0], best) if math.isfinite(best) else (parent, best)

    def mutations(self, parent: Levels, draw: Draw) -> list[Levels]:
        """Distinct offspring of a parent; fewer where not as many were found."""
        found: list[Levels] = []
        for _ in range(TRIES * self.offspring):
            mutated = self._mutated(parent, draw)
            if mutated not in found:
                found.append(mutated)
            if len(found) == self.offspring:
                break
        return found

    def _mutated(self, parent: Levels, draw: Draw) -> Levels:
        levels = list(parent)
        for _ in range(min(draw(3), draw(3)) + 1):
            lowered = _pick([level > low for level, low in zip(levels, self.lowest, strict=True)], draw)
            if lowered is None:
                continue
            raised = _pick(
                [
                    level < high and part == self.parts[lowered]
                    for level, high, part in zip(levels, self.highest, self.parts, strict=True)
                ],
                draw,
            )
            if raised is not None:
                levels[lowered] -= 1
                levels[raised] += 1
        return tuple(levels)


def _pick(allowed: Sequence[bool], draw: Draw) -> int | None:
    """Draw one of the allowed indices; None if there is none."""
    if not any(allowed):
        return None
    while not allowed[index := draw(len(allowed))]:
        pass
    return index


def _distinct(total: int, count: int, draw: Draw) -> list[int]:
    """Draw ``count`` different indices below ``total``; all of them if there are no more."""
    found: dict[int, None] = {}
    while len(found) < min(count, total):
        found.setdefault(draw(total))
    return list(found)
