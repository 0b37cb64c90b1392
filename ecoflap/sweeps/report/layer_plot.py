"""The chart of single layers: heat maps by block and kind, a row per method and a column per tower."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ecoflap.sweeps.report.layer_maps import Array, LayerMap, Maps
from ecoflap.sweeps.report.style import WIDTH, heat_map, new_figure, panel_widths, styled, wrapped


@styled
def plot_layers(maps: Maps, title: str, label: str, colours: str) -> Figure:
    """Plot one row of maps per method and one column per tower, on one scale.

    Args:
        maps: the maps.
        title: of the figure.
        label: what the colours mean, with its unit.
        colours: the colour map.
    """
    towers = list(dict.fromkeys(tower for row in maps.values() for tower in row))
    blocks = [max(row[tower].values.shape[1] for row in maps.values() if tower in row) for tower in towers]
    kinds = [max(len(one.kinds) for one in row.values()) for row in maps.values()]
    figures = np.concatenate([one.values.ravel() for row in maps.values() for one in row.values()])
    scale = _scale(figures[np.isfinite(figures)])
    width = min(max(WIDTH, 1.1 * len(towers) + 0.11 * sum(blocks)), 13)
    figure = new_figure(width, 1.3 + sum(0.5 + 0.19 * count for count in kinds))
    figure.suptitle(title, fontsize=10)
    grid = figure.subplots(
        len(maps), len(towers), squeeze=False, height_ratios=kinds, width_ratios=panel_widths(blocks)
    )
    for axes_of_row, (name, row) in zip(grid, maps.items(), strict=True):
        heading = axes_of_row[0].annotate(
            wrapped(name, 70).split("\n")[0],
            (0, 1),
            (0, 17),
            xycoords="axes fraction",
            textcoords="offset points",
            fontsize=9.5,
        )
        heading.set_in_layout(False)  # it may be wider than its column, over the room in the titles
        for axes, tower in zip(axes_of_row, towers, strict=True):
            if tower in row:
                drawn = _draw(axes, row[tower], tower, colours, scale, len(figures))
            else:
                axes.set_axis_off()
    bar = figure.colorbar(drawn, ax=grid, orientation="horizontal", aspect=40, shrink=0.8, pad=0.02)
    bar.set_label(label)
    return figure


def _scale(figures: Array) -> tuple[float, float]:
    """The values of the first and the last colour; differences below one percent, of rounding, have none."""
    if not len(figures):
        return 0.0, 1.0
    low, high = float(figures.min()), float(figures.max())
    return (low, high) if high - low > 0.01 * high else (low - 0.02, high + 0.02)


def _draw(
    axes: Axes, one: LayerMap, tower: str, colours: str, scale: tuple[float, float], cells: int
) -> QuadMesh:
    drawn = heat_map(axes, one.values, colours, scale, cells)
    axes.set_title(f"\n{tower}", fontsize=9)
    axes.set_yticks(range(len(one.kinds)), _short(one.kinds), fontsize=8.5)
    axes.xaxis.set_major_locator(MaxNLocator(min(8, one.values.shape[1]), integer=True, min_n_ticks=1))
    axes.set_xlabel("block", fontsize=8.5)
    axes.tick_params(axis="x", labelsize=8)
    return drawn


def _short(kinds: Sequence[str]) -> list[str]:
    """The last word of each kind, after the beginning of the one before where kinds share their last."""
    words = [kind.split(".") for kind in kinds]
    ends = Counter(one[-1] for one in words)
    return [one[-1] if ends[one[-1]] == 1 or len(one) < 2 else f"{one[-2][:9]}.{one[-1]}" for one in words]
