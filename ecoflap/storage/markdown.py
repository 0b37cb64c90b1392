"""Tables of Markdown, for model cards and reports."""

from __future__ import annotations

from collections.abc import Iterable


def markdown_row(cells: Iterable[object]) -> str:
    """One line of a GitHub table; a bar inside a cell would end the cell."""
    return f"| {' | '.join(str(cell).replace('|', '/') for cell in cells)} |"
