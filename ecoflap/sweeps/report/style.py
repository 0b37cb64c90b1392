"""How every plot looks, on paper and inside the page.

A method keeps its colour, marker and line in all charts of a section. Six colours differ for colour-blind
readers too (simulated protanopia and deuteranopia) and stand out from white and from the page's dark
background; markers and dashes go on where the colours repeat.
"""

from __future__ import annotations

import io
import re
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

INK = "#2b2c2e"
"""Text, axes and reference lines. The page replaces it by the colour of its own text, which is light on
dark.
"""
COLOURS = ("#0072b2", "#d55e00", "#3399aa", "#aa4455", "#7788ff", "#4444ff")
WIDTH = 6.6
"""Inches: two such figures stand side by side on a page."""
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
    "svg.fonttype": "none",  # text that can be searched and follows the page's font
    "savefig.dpi": 160,
    **dict.fromkeys(
        ("text.color", "axes.labelcolor", "axes.edgecolor", "axes.titlecolor", "xtick.color", "ytick.color"),
        INK,
    ),
}

styled = matplotlib.rc_context(STYLE)
"""Decorates what makes a figure or writes one."""


def look(index: int) -> dict[str, Any]:
    """Colour, marker and dashes of the method with this number; the first 168 differ."""
    return {
        "color": COLOURS[index % len(COLOURS)],
        "marker": MARKERS[index % len(MARKERS)],
        "linestyle": DASHES[index // len(COLOURS) % len(DASHES)],
    }


def new_figure(width: float, height: float) -> Figure:
    """An empty figure, in inches, that makes room for its labels by itself and needs no screen."""
    return Figure(figsize=(width, height), layout="constrained")


def wrapped(text: str, width: int) -> str:
    """Text in lines of at most so many characters; breaks inside words where nothing else helps, as in long
    paths.
    """
    return "\n".join(textwrap.wrap(text, width, break_on_hyphens=False)) or text


def rows_height(labels: Sequence[str]) -> float:
    """Inches that a chart with one row per label takes; all rows are as high as the label of most lines
    needs.
    """
    return len(labels) * max(0.32, *(0.08 + 0.17 * (1 + label.count("\n")) for label in labels))


def legend_below(figure: Figure, handles: Sequence[Any], labels: Sequence[str]) -> None:
    """A legend under the axes, in as many columns as its longest label allows; the figure grows by its
    height.
    """
    width, height = figure.get_size_inches()
    lines = [wrapped(label, max(int(width / 0.09), 30)) for label in labels]
    longest = max(len(part) for line in lines for part in line.split("\n"))
    columns = max(1, min(len(lines), int(width / (0.075 * longest + 0.5))))
    rows = -(-len(lines) // columns) + sum(line.count("\n") for line in lines) / columns
    figure.set_size_inches(width, height + 0.2 * rows + 0.1)
    figure.legend(handles, lines, loc="outside lower left", ncols=columns)


@styled
def save(figure: Figure, folder: Path, name: str) -> str:
    """Write ``name.png`` and ``name.pdf`` into a folder.

    Returns:
        The figure as an SVG element for a page: the text's colour is the page's, ids that would clash with
        other figures' are gone.
    """
    figure.savefig(folder / f"{name}.png")
    figure.set_layout_engine("none")  # everything has its place now; finding it takes as long as drawing
    figure.savefig(folder / f"{name}.pdf", metadata={"CreationDate": None})
    buffer = io.StringIO()
    with matplotlib.rc_context(
        {"svg.hashsalt": name}
    ):  # ids that are the figure's own, and the same each time
        figure.savefig(
            buffer,
            format="svg",
            transparent=True,
            metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")),
        )
    svg = buffer.getvalue()
    svg = re.sub(r' id="[A-Za-z0-9.]+_\d+"', "", svg[svg.index("<svg") :])
    return svg.replace(INK, "currentColor")


@styled
def png(figure: Figure) -> bytes:
    """The figure as a PNG file in memory."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()
