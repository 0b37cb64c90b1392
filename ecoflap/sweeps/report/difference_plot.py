"""The chart of differences to the dense model, the uniform allocation and another sweep, with intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ecoflap.sweeps.report.differences import Difference, Row
from ecoflap.sweeps.report.metrics import MetricTable
from ecoflap.sweeps.report.style import INK, WIDTH, look, new_figure, rows_height, styled, wrapped


@styled
def plot_differences(table: MetricTable, rows: Sequence[Row], ranks: dict[Any, int]) -> Figure:
    """Plot a row per method and sparsity; a panel without any difference is left out.

    Args:
        table: the metric.
        rows: its differences.
        ranks: index of each method's colour.
    """
    panels = [
        (title, differences)
        for title, differences in (
            ("to dense", [row.dense for row in rows]),
            ("to uniform", [row.uniform for row in rows]),
            ("to first sweep", [row.sweep for row in rows]),
        )
        if any(one is not None and math.isfinite(one.mean) for one in differences)
    ]
    several = len({row.sparsity for row in rows}) > 1
    labels = [
        wrapped(f"{row.method.label}, {row.sparsity:g}" if several else row.method.label, 30) for row in rows
    ]
    figure = new_figure(WIDTH, 1.0 + rows_height(labels))
    grid = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for axes, (title, differences) in zip(grid, panels, strict=True):
        axes.set_title(title, fontsize=10)
        axes.axvline(0, color=INK, linewidth=1.1, linestyle=(0, (2, 2)), zorder=1)
        for position, (row, one) in enumerate(zip(rows, differences, strict=True)):
            if one is not None and math.isfinite(one.mean):
                _draw(axes, one, position, look(ranks[row.method]))
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="y", visible=False)
    grid[0].set_yticks(range(len(rows)), labels, fontsize=9)
    grid[0].set_ylim(len(rows) - 0.5, -0.5)
    unit = {"%": ", percentage points", "nats": ", nats"}.get(table.unit, "")
    figure.supxlabel(f"difference in {table.metric}{unit} ({table.direction})", fontsize=10)
    return figure


def _draw(axes: Axes, one: Difference, position: int, appearance: dict[str, Any]) -> None:
    bars = None
    if one.low is not None and one.high is not None:
        bars = [[max(one.mean - one.low, 0)], [max(one.high - one.mean, 0)]]
    axes.errorbar([one.mean], [position], xerr=bars, **{**appearance, "linestyle": "none"})
