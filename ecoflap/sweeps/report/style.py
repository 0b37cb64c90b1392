"""The style of all plots, on paper and on the page.

A method keeps its colour, marker and line style in all charts of a section. The six colours are distinct for
colour-blind readers (simulated protanopia and deuteranopia) and in contrast to white and to the page's dark
background; beyond six methods, markers and dashes distinguish equal colours.
"""

from __future__ import annotations

import io
import re
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from matplotlib.figure import Figure
from numpy.typing import NDArray

INK = "#2b2c2e"
"""Colour of text, axes and reference lines; the page replaces it by the colour of its text."""
COLOURS = ("#0072b2", "#d55e00", "#3399aa", "#aa4455", "#7788ff", "#4444ff")
WIDTH = 5.2
"""Width of a figure in inches; its words stay legible on a phone, and several fit on a page side by side."""
MANY = 2000
"""The most cells of heat maps in a figure that are shapes; more are images, which take less of a page."""
MARKERS = "osD^vPX"
DASHES = ("-", (0, (5, 2)), (0, (1, 1.5)), (0, (5, 1.5, 1, 1.5)))
STYLE: Any = {
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#8a8d92",
    "grid.alpha": 0.25,
    "lines.linewidth": 1.6,
    "lines.markersize": 5.5,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "errorbar.capsize": 3,
    "text.parse_math": False,  # names may hold a dollar sign
    "svg.fonttype": "none",  # searchable text in the page's font
    "savefig.dpi": 160,
    **dict.fromkeys(
        ("text.color", "axes.labelcolor", "axes.edgecolor", "axes.titlecolor", "xtick.color", "ytick.color"),
        INK,
    ),
}

styled = matplotlib.rc_context(STYLE)
"""Decorator of functions that create or write figures."""


def look(index: int) -> dict[str, Any]:
    """Colour, marker and dashes of the method with this index; the first 168 differ."""
    return {
        "color": COLOURS[index % len(COLOURS)],
        "marker": MARKERS[index % len(MARKERS)],
        "linestyle": DASHES[index // len(COLOURS) % len(DASHES)],
    }


def new_figure(width: float, height: float) -> Figure:
    """An empty figure, in inches, that arranges its labels automatically and needs no display."""
    return Figure(figsize=(width, height), layout="constrained")


def wrapped(text: str, width: int) -> str:
    """Text in lines of at most ``width`` characters; words that are longer, such as paths, are broken."""
    return "\n".join(textwrap.wrap(text, width, break_on_hyphens=False)) or text


def rows_height(labels: Sequence[str]) -> float:
    """Height in inches of a chart with one row per label; all rows are as high as the longest label needs."""
    return len(labels) * max(0.32, *(0.08 + 0.17 * (1 + label.count("\n")) for label in labels))


def panel_widths(columns: Sequence[int]) -> list[float]:
    """The relative widths of panels with so many columns; none is too narrow for its title."""
    return [max(count, 0.3 * max(columns)) for count in columns]


def legend_below(figure: Figure, handles: Sequence[Any], labels: Sequence[str]) -> None:
    """Add a legend under the axes, in as many columns as fit; the figure grows by its height."""
    width, height = figure.get_size_inches()
    lines = [wrapped(label, max(int(width / 0.09), 30)) for label in labels]
    longest = max(len(part) for line in lines for part in line.split("\n"))
    columns = max(1, min(len(lines), int(width / (0.075 * longest + 0.5))))
    rows = -(-len(lines) // columns) + sum(line.count("\n") for line in lines) / columns
    figure.set_size_inches(width, height + 0.2 * rows + 0.1)
    figure.legend(handles, lines, loc="outside lower left", ncols=columns)


def heat_map(
    axes: Axes, values: NDArray[Any], colours: str, scale: tuple[float, float], cells: int
) -> QuadMesh:
    """Draw a cell per value [rows, cols], the first row on top; NaN is left blank.

    Args:
        axes: where to draw.
        values: the values.
        colours: the colour map.
        scale: the values of its first and last colour.
        cells: number of cells in the whole figure.
    """
    rows, columns = values.shape
    edges = (np.arange(columns + 1) - 0.5, np.arange(rows + 1) - 0.5)
    drawn = axes.pcolormesh(
        *edges,
        np.ma.masked_invalid(values),
        cmap=colours,
        vmin=scale[0],
        vmax=scale[1],
        rasterized=cells > MANY,
        edgecolors="face",
        linewidth=0.1,
    )
    axes.set_ylim(rows - 0.5, -0.5)
    axes.grid(False)
    axes.tick_params(axis="y", length=0)
    return drawn


@styled
def save(figure: Figure, folder: Path, name: str) -> str:
    """Write ``name.png`` and ``name.pdf`` into a folder.

    Returns:
        The figure as an SVG element for a page, in the colour of the page's text, and without ids that other
        figures also have.
    """
    figure.savefig(folder / f"{name}.png")
    figure.set_layout_engine("none")  # the layout is final; computing it takes as long as drawing
    figure.savefig(folder / f"{name}.pdf", metadata={"CreationDate": None})
    buffer = io.StringIO()
    no_metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    with matplotlib.rc_context({"svg.hashsalt": name}):  # reproducible ids, unique to the figure
        figure.savefig(buffer, format="svg", transparent=True, metadata=no_metadata)
    svg = buffer.getvalue()
    svg = re.sub(r' id="[A-Za-z0-9.]+_\d+"', "", svg[svg.index("<svg") :])
    return svg.replace(INK, "currentColor")


@styled
def png(figure: Figure) -> bytes:
    """The figure as a PNG file in memory."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()
