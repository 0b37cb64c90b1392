"""Levels of layers: each step of a level takes the same number of weights from every layer of a part."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median_low

from ecoflap.allocate.allocation import keep_total
from ecoflap.models.core.layers import Layer
from ecoflap.ops import proportional


@dataclass(frozen=True)
class Ladder:
    """The counts of every layer's levels.

    As long as the levels of each part add up to zero, its counts add up to its exact total.

    Attributes:
        layers: names of the layers, part by part.
        parts: the number of each layer's part.
        base: weights that each layer keeps at level 0.
        steps: weights in each layer's steps.
        lowest: the lowest level of each layer; it keeps the most weights.
        highest: the highest one.
    """

    layers: tuple[str, ...]
    parts: tuple[int, ...]
    base: tuple[int, ...]
    steps: tuple[int, ...]
    lowest: tuple[int, ...]
    highest: tuple[int, ...]

    def counts(self, levels: Sequence[int]) -> dict[str, int]:
        """{layer: weights that it keeps at its level}."""
        rows = zip(self.layers, self.base, levels, self.steps, strict=True)
        return {name: base - level * step for name, base, level, step in rows}


def make_ladder(
    parts: Sequence[Sequence[Layer]], sparsity: float, levels: int, step: int | None = None
) -> Ladder:
    """Levels around the uniform sparsity.

    Args:
        parts: layers that share a budget.
        sparsity: of every part.
        levels: most steps up or down; fewer for a layer that has no more weights to lose or to regain.
        step: weights in a step; None for the authors' rule int(0.5 min(s, 1 - s) / levels x hidden_size^2).
            The median layer of a part stands for the hidden_size^2 weights of an attention projection.
    """
    rows: list[tuple[str, int, int, int, int, int]] = []
    for number, layers in enumerate(parts):
        sizes = [layer.size for layer in layers]
        width = step or max(1, int(0.5 * min(sparsity, 1 - sparsity) / levels * median_low(sizes)))
        for layer, base in zip(layers, proportional(sizes, keep_total(sizes, sparsity)), strict=True):
            lowest = -min(levels, (layer.size - base) // width)
            rows.append((layer.name, number, base, width, lowest, min(levels, base // width)))
    return Ladder(*zip(*rows, strict=True))
