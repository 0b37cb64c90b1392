"""The chart of a metric: a line per method over sparsity, or a row per method at a single sparsity."""

from __future__ import annotations

import math
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from ecoflap.sweeps.report.cells import pruned, realised_mean, statistics
from ecoflap.sweeps.report.metrics import MetricTable
from ecoflap.sweeps.report.style import (
    INK,
    WIDTH,
    legend_below,
    look,
    new_figure,
    rows_height,
    styled,
    wrapped,
)


@styled
def plot_metric(table: MetricTable, ranks: dict[Any, int]) -> Figure:
    """Plot means over seeds with their standard deviations, and the dense model as a dashed line.

    Args:
        table: the figures.
        ranks: index of each method's colour.
    """
    plot = _against_sparsity if len(table.sparsities) > 1 else _by_method
    figure = plot(table, ranks)
    figure.axes[0].set_title(wrapped(table.title, 60), pad=16)  # above the name of the dense line
    return figure


def unshown(table: MetricTable) -> list[str]:
    """Descriptions of the cells that a chart can't show, because their mean is not finite."""
    means = [
        (method.label, sparsity, statistics(pruned(seeds))[0])
        for method, row in table.cells.items()
        for sparsity, seeds in row.items()
    ]
    return [f"{label} at {sparsity:g} ({mean})" for label, sparsity, mean in means if not math.isfinite(mean)]


def _against_sparsity(table: MetricTable, ranks: dict[Any, int]) -> Figure:
    figure = new_figure(WIDTH, 4.2)
    axes = figure.add_subplot()
    handles = []
    for method, row in table.cells.items():
        means, deviations = _finite(row)
        handles.append(axes.errorbar(_realised(row), means, deviations, **look(ranks[method]))[0])
    _dense_line(axes, table, "y")
    _scale(axes, table, "y")
    axes.set_xticks(table.sparsities, [f"{sparsity:g}" for sparsity in table.sparsities])
    axes.set_xlabel(_with_unshown(f"{_kind(table)}: share of the prunable weights removed", table))
    axes.set_ylabel(table.label)
    legend_below(figure, handles, [method.label for method in table.cells])
    return figure


def _by_method(table: MetricTable, ranks: dict[Any, int]) -> Figure:
    labels = [wrapped(method.label, 44) for method in table.cells]
    figure = new_figure(WIDTH, 1.3 + rows_height(labels))
    axes = figure.add_subplot()
    for position, (method, row) in enumerate(table.cells.items()):
        means, deviations = _finite(row)
        axes.errorbar(means, [position], xerr=deviations, **look(ranks[method]))
    axes.set_yticks(range(len(labels)), labels)
    axes.set_ylim(len(labels) - 0.4, -0.6)  # first method on top, as in the table
    _dense_line(axes, table, "x")
    _scale(axes, table, "x")
    # Below the whole figure, as the axes are narrow beside long names.
    figure.supxlabel(_with_unshown(f"{table.label}, at sparsity {table.sparsities[0]:g}", table), fontsize=10)
    return figure


def _realised(row: dict[float, Any]) -> list[float]:
    """The realised sparsity of each cell; the target where it is unknown."""
    means = [(target, realised_mean(seeds)) for target, seeds in row.items()]
    return [target if realised is None else realised for target, realised in means]


def _kind(table: MetricTable) -> str:
    """Which sparsity the axis shows, by the words of its label."""
    known = [realised_mean(seeds) is not None for row in table.cells.values() for seeds in row.values()]
    return "realised sparsity" if all(known) else "realised or, for whole units, target sparsity"


def _finite(row: dict[float, Any]) -> tuple[list[float], list[float] | None]:
    """Mean and deviation of each cell, NaN where they are not finite, which breaks the line.

    The deviations are None if every cell has one run.
    """
    summaries = [statistics(pruned(seeds)) for seeds in row.values()]
    means = [mean if math.isfinite(mean) else math.nan for mean, _ in summaries]
    known = [math.nan if deviation is None else deviation for _, deviation in summaries]
    deviations = [deviation if math.isfinite(deviation) else math.nan for deviation in known]
    return means, None if all(map(math.isnan, deviations)) else deviations


def _scale(axes: Axes, table: MetricTable, direction: str) -> None:
    """Set a logarithmic scale if smaller is better and the figures span more than a decade."""
    means = [mean for row in table.cells.values() for mean in _finite(row)[0]]
    values = [mean for mean in means if not math.isnan(mean)] + table.dense
    if not values or not table.smaller_is_better or min(values) <= 0 or max(values) < 10 * min(values):
        return
    axes.set(**{f"{direction}scale": "log"})
    low, high = getattr(axes, f"get_{direction}lim")()
    # A deviation as large as its mean would extend the axis down by decades.
    axes.set(**{f"{direction}lim": (max(low, 0.7 * min(values)), high)})
    axis = getattr(axes, f"{direction}axis")
    axis.set_major_locator(LogLocator(subs=(1, 2, 5) if max(values) < 1000 * min(values) else (1,)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def _dense_line(axes: Axes, table: MetricTable, direction: str) -> None:
    """Draw the dense model's figure as a dashed line, and as a band if runs measured different figures."""
    if not table.dense:
        return
    low, high = table.dense
    middle, upright = (low + high) / 2, direction == "x"
    draw_line = axes.axvline if upright else axes.axhline
    draw_line(middle, color=INK, linestyle=(0, (2, 2)), linewidth=1.1, zorder=1)
    if high > low:
        draw_span = axes.axvspan if upright else axes.axhspan
        draw_span(low, high, color=INK, alpha=0.1, linewidth=0)
    point = (middle, 1) if upright else (1, middle)
    coordinates = ("data", "axes fraction") if upright else ("axes fraction", "data")
    side = "left" if upright and table.smaller_is_better else "right"
    axes.annotate(
        f"dense {middle:.4g}",
        point,
        xycoords=coordinates,
        xytext=(-3 if side == "right" else 3, 3),
        textcoords="offset points",
        ha=side,
        fontsize=8.5,
    )


def _with_unshown(label: str, table: MetricTable) -> str:
    missing = unshown(table)
    return f"{label}\n{wrapped('not shown: ' + '; '.join(missing), 90)}" if missing else label
