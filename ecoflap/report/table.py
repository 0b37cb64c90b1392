"""One table per report: methods down, sparsities across, mean and standard deviation over seeds; as GitHub's Markdown and as CSV."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from ecoflap.report.methods import Method
from ecoflap.report.metrics import MetricTable, dense_mean, pruned, statistics

COLUMNS = ("model", "pruner", "score", "settings", "metric")


def markdown(tables: Sequence[MetricTable]) -> Iterator[str]:
    """The lines of a GitHub table; a cell is ``mean ± deviation (n)``. Settings have a column only where there are some."""
    sparsities = sorted({sparsity for table in tables for sparsity in table.sparsities})
    rows = [(_names(table, method), row) for table in tables for method, row in table.cells.items()]
    shown = [index for index, column in enumerate(COLUMNS) if column != "settings" or any(names[index] for names, _ in rows)]
    headings = [*(COLUMNS[index] for index in shown), "dense", *(f"{sparsity:g}" for sparsity in sparsities)]
    yield _line(headings)
    yield _line(["---"] * len(shown) + ["---:"] * (len(headings) - len(shown)))
    for names, row in rows:
        cells = [cell(pruned(row[sparsity])) if sparsity in row else "" for sparsity in sparsities]
        yield _line([*(names[index] for index in shown), figure(dense_mean(row)), *cells])


def write_csv(path: Path, tables: Sequence[MetricTable]) -> None:
    """One line per metric, method and sparsity, figures at full precision."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow([*COLUMNS, "sparsity", "n", "mean", "deviation", "dense"])
        for table in tables:
            for method, row in table.cells.items():
                for sparsity, seeds in row.items():
                    writer.writerow([*_names(table, method), sparsity, len(seeds), *statistics(pruned(seeds)), dense_mean({sparsity: seeds})])


def cell(values: Sequence[float]) -> str:
    """``mean ± deviation (n)``."""
    mean, deviation = statistics(values)
    return f"{mean:.4g} (n={len(values)})" if deviation is None else f"{mean:.4g} ± {deviation:.2g} (n={len(values)})"


def figure(value: float | None) -> str:
    """Four digits, or nothing."""
    return "" if value is None else f"{value:.4g}"


def _names(table: MetricTable, method: Method) -> tuple[str, ...]:
    """One value per column of ``COLUMNS``."""
    return table.model, method.pruner, method.score, method.setting, table.name


def _line(cells: Iterable[Any]) -> str:
    """One line of a GitHub table; a bar inside a cell would end it."""
    return f"| {' | '.join(str(cell).replace('|', '/') for cell in cells)} |"
