"""The table of a report as Markdown and CSV: methods down, sparsities across, statistics over seeds."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ecoflap.storage.markdown import markdown_row
from ecoflap.sweeps.report.cells import Cell, dense_mean, other_sparsity, pruned, realised_mean, statistics
from ecoflap.sweeps.report.digits import figure, with_deviation
from ecoflap.sweeps.report.methods import Method
from ecoflap.sweeps.report.metrics import MetricTable

COLUMNS = ("model", "pruner", "coarse stage", "settings", "metric")
CSV_COLUMNS = (*COLUMNS, "sparsity", "realised", "n", "mean", "deviation", "dense")
"""The columns of ``csv_rows``."""


def markdown(tables: Sequence[MetricTable]) -> Iterator[str]:
    """The lines of a GitHub table: one column per target (see ``cell``), and settings if there are any."""
    sparsities = sorted({sparsity for table in tables for sparsity in table.sparsities})
    rows = [(_names(table, method), row) for table in tables for method, row in table.cells.items()]
    used = [any(names[index] for names, _ in rows) for index in range(len(COLUMNS))]
    shown = [index for index, column in enumerate(COLUMNS) if column != "settings" or used[index]]
    headings = [*(COLUMNS[index] for index in shown), "dense", *(f"{sparsity:g}" for sparsity in sparsities)]
    yield markdown_row(headings)
    yield markdown_row(["---"] * len(shown) + ["---:"] * (len(headings) - len(shown)))
    for names, row in rows:
        cells = [cell(sparsity, row[sparsity]) if sparsity in row else "" for sparsity in sparsities]
        yield markdown_row([*(names[index] for index in shown), figure(dense_mean(row)), *cells])


def csv_rows(tables: Sequence[MetricTable]) -> Iterator[list[Any]]:
    """One row per metric, method and sparsity, with figures at full precision."""
    for table in tables:
        for method, row in table.cells.items():
            for sparsity, seeds in row.items():
                names, figures = _names(table, method), statistics(pruned(seeds))
                dense = dense_mean({sparsity: seeds})
                yield [*names, sparsity, realised_mean(seeds), len(seeds), *figures, dense]


def write_csv(path: Path, tables: Sequence[MetricTable]) -> None:
    """Write the rows as CSV, with a line of headings."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(CSV_COLUMNS)
        writer.writerows(csv_rows(tables))


def cell(target: float, seeds: Cell, counted: bool = True) -> str:
    """``mean ± deviation (n)``, and the realised sparsity if it differs from the target.

    Args:
        target: the target sparsity.
        seeds: the figures.
        counted: whether the number of seeds is part of the text.
    """
    mean, deviation = statistics(pruned(seeds))
    shown = figure(mean) if deviation is None else with_deviation(mean, deviation)
    if counted:
        shown += f" (n={len(seeds)})"
    realised = other_sparsity(target, seeds)
    return shown if realised is None else f"{shown} at {realised:.4f}"


def _names(table: MetricTable, method: Method) -> tuple[str, ...]:
    """The values of ``COLUMNS``."""
    return table.model, method.pruner, method.score, method.setting, table.name
