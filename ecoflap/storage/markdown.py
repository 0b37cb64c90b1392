"""Tables of Markdown, for model cards and reports."""

from __future__ import annotations

from collections.abc import Iterable


def markdown_row(cells: Iterable[object]) -> str:
    """One line of a GitHub table; a bar inside a cell would end the cell, and a line break the row."""
    return f"| {' | '.join(_one_line(str(cell)).replace('|', '/') for cell in cells)} |"


def _one_line(text: str) -> str:
    return text.replace("\r", "\\r").replace("\n", "\\n")
