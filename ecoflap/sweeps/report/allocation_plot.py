"""The chart of allocations: the sparsity of every block, a panel per tower and a row of panels per target."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ecoflap.sweeps.report.allocations import Line, Lines, block_counts
from ecoflap.sweeps.report.blocks import block_sparsities
from ecoflap.sweeps.report.style import (
    INK,
    WIDTH,
    heat_map,
    legend_below,
    look,
    new_figure,
    panel_widths,
    png,
    styled,
)

FEW = 5
"""The most allocations that are legible as lines over dozens of blocks; more are shown as heat maps."""


@styled
def plot_allocation(lines: Lines) -> Figure:
    """Plot the sparsity of every block in pruning order: lines for a few allocations, heat maps for many.

    Args:
        lines: the allocations of each target.
    """
    counts = block_counts(lines)
    draw = _draw_lines if are_few(lines) else _draw_maps
    return draw(lines, counts)


def are_few(lines: Lines) -> bool:
    """Whether the allocations are shown as lines."""
    return max(map(len, lines.values()), default=0) <= FEW


def allocation_png(
    model: str, layers: Mapping[str, Mapping[str, Any]], kept: Mapping[str, int], target: float
) -> bytes:
    """One run's allocation as a PNG file.

    Args:
        model: the model's name.
        layers: ``tower`` and ``size`` of each layer.
        kept: number of weights that each layer keeps.
        target: the target sparsity.
    """
    figure = plot_allocation({target: [Line("", 0, [block_sparsities(layers, kept)])]})
    figure.suptitle(model, x=0.01, ha="left", fontsize=11)
    return png(figure)


def _draw_lines(lines: Lines, counts: Mapping[str, int]) -> Figure:
    """Draw the mean over seeds as a line, the range over seeds as a band, and the target dashed."""
    figure, grid = _panels(counts, [1.75] * len(lines), side=0.9)
    handles: dict[str, Any] = {}
    for row, (target, members) in zip(grid, lines.items(), strict=True):
        for axes, tower in zip(row, counts, strict=True):
            axes.axhline(target, color=INK, linestyle=(0, (2, 2)), linewidth=1, zorder=1)
            for line in members:
                handles.setdefault(line.label, _draw_line(axes, line, tower))
        row[0].set_ylabel(f"sparsity\n(target {target:g})")
        low, high = row[0].get_ylim()
        middle = (low + high) / 2
        # At least this range, so that a uniform allocation shows as a line instead of rounding noise.
        row[0].set_ylim(min(low, middle - 0.02), max(high, middle + 0.02))
    if any(handles):
        legend_below(figure, list(handles.values()), list(handles))
    return figure


def _draw_line(axes: Axes, line: Line, tower: str) -> Any:
    values, means = line.block_values(tower), line.means(tower)
    appearance = {**look(line.rank), "markersize": 4 if len(values) <= 48 else 2.5}
    if max(map(len, values), default=0) > 1:
        lows, highs = list(map(min, values)), list(map(max, values))
        axes.fill_between(range(len(values)), lows, highs, color=appearance["color"], alpha=0.18, linewidth=0)
    return axes.plot(range(len(values)), means, **appearance)[0]


def _draw_maps(lines: Lines, counts: Mapping[str, int]) -> Figure:
    """Draw sparsity minus target, mean over seeds: one row per method, one column per block."""
    furthest = max(
        abs(value - target)
        for target, members in lines.items()
        for line in members
        for tower in counts
        for value in line.means(tower)
    )
    total = sum(counts.values()) * sum(map(len, lines.values()))
    longest = max(len(line.label) for members in lines.values() for line in members)
    heights = [0.35 + 0.2 * len(members) for members in lines.values()]
    figure, grid = _panels(counts, heights, side=min(0.6 + 0.075 * longest, 4))
    for row, (target, members) in zip(grid, lines.items(), strict=True):
        for axes, tower in zip(row, counts, strict=True):
            cells = np.full((len(members), counts[tower]), np.nan)
            for index, line in enumerate(members):
                means = line.means(tower)
                cells[index, : len(means)] = np.subtract(means, target)
            drawn = heat_map(axes, cells, "PuOr_r", (-furthest, furthest), total)
        row[0].set_yticks(range(len(members)), [_shortened(line.label) for line in members], fontsize=8)
        row[0].set_ylabel(f"target {target:g}")
    bar = figure.colorbar(drawn, ax=grid, orientation="horizontal", aspect=45, shrink=0.6, pad=0.02)
    bar.set_label("sparsity of the block minus the target")
    return figure


def _panels(counts: Mapping[str, int], heights: Sequence[float], side: float) -> tuple[Figure, Any]:
    """A figure and its axes [targets, towers], as wide as the towers are long.

    Args:
        counts: number of blocks of each tower.
        heights: height of each row of panels, in inches.
        side: width of the labels at the side, in inches.
    """
    figure = new_figure(min(max(WIDTH, side + 0.5 + 0.085 * sum(counts.values())), 13), 1.1 + sum(heights))
    grid = figure.subplots(
        len(heights),
        len(counts),
        sharey="row",
        sharex="col",
        squeeze=False,
        width_ratios=panel_widths(list(counts.values())),
        height_ratios=heights,
    )
    for column, (tower, count) in enumerate(counts.items()):
        grid[0, column].set_title(f"{tower}, {count} block{'s' * (count != 1)}", fontsize=10)
        ticks = MaxNLocator(max(2, min(10, count)), integer=True, min_n_ticks=1)
        grid[-1, column].xaxis.set_major_locator(ticks)
        grid[-1, column].set_xlim(-0.5, count - 0.5)
        grid[-1, column].set_xlabel("block")
    return figure, grid


def _shortened(label: str) -> str:
    """A label short enough for the side of a map; methods differ more at its end than in its middle."""
    return label if len(label) <= 60 else f"{label[:24]} … {label[-33:]}"
