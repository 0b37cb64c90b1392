"""Aligned tables on stdout, so that they can be piped."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from typing import Any

UNBOUNDED = 10_000
"""Columns of a table in a file or a pipe, where rich would assume 80 and fold the cells."""


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Print an aligned table to stdout: numbers right-aligned, floats with four decimals, None as a dash.

    Args:
        title: Heading above the table.
        columns: Heading of each column.
        rows: One cell per column.
    """
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    cells = [list(row) for row in rows]
    grid = Table(box=SIMPLE_HEAD)
    for index, column in enumerate(columns):
        numeric = all(_is_number(row[index]) for row in cells)
        grid.add_column(Text(column), justify="right" if numeric else "left", overflow="fold")
    for row in cells:
        grid.add_row(*(Text(_cell(value)) for value in row))
    console = Console(width=None if sys.stdout.isatty() else UNBOUNDED)
    with console.capture() as drawn:
        console.print(Text(title, style="bold"))  # a title of the grid would be wrapped to the grid's width
        console.print(grid)
    text = drawn.get()
    if not sys.stdout.isatty():  # no cell is padded at the end of a line
        text = "\n".join(line.rstrip() for line in text.split("\n"))
    print(text, end="")


def _is_number(value: Any) -> bool:
    """Whether a cell is a number, a text such as 57,344, or empty."""
    return isinstance(value, int | float | None) or str(value).replace(",", "").isdecimal()


def _cell(value: Any) -> str:
    """One cell as text."""
    if value is None:
        return "-"
    return f"{value:.4f}" if isinstance(value, float) else str(value)
