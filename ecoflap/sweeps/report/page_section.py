"""A section of the page: one model on its tasks, with its charts and tables."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from markupsafe import Markup
from matplotlib.figure import Figure

from ecoflap.sweeps.report.allocation_plot import are_few, plot_allocation
from ecoflap.sweeps.report.allocations import lines_of
from ecoflap.sweeps.report.cells import dense_mean, other_sparsity, pruned, statistics
from ecoflap.sweeps.report.cost_plot import costs_of, plot_costs
from ecoflap.sweeps.report.difference_plot import plot_differences
from ecoflap.sweeps.report.differences import Difference, Row, rows_of
from ecoflap.sweeps.report.digits import figure, signed
from ecoflap.sweeps.report.examples import examples_of
from ecoflap.sweeps.report.layer_maps import maps_of
from ecoflap.sweeps.report.layer_plot import plot_layers
from ecoflap.sweeps.report.methods import Method
from ecoflap.sweeps.report.metric_plot import plot_metric
from ecoflap.sweeps.report.metrics import MetricTable, best, other_tables
from ecoflap.sweeps.report.sections import Section
from ecoflap.sweeps.report.sizes import sizes_of
from ecoflap.sweeps.report.style import save
from ecoflap.sweeps.report.table import cell

LAYERS = (
    ("sparsity", "sparsity: share of the layer's weights removed", "viridis"),
    ("error", "relative error of the output: |(W′ − W) X| / |W X|", "magma_r"),
)
"""Figure of each layer, what it means, and its colours."""


@dataclass
class Plots:
    """Saves figures in a folder, each under a unique name.

    Attributes:
        folder: the folder of their files.
        names: how often each name was used.
    """

    folder: Path
    names: Counter[str] = field(default_factory=Counter)

    def __call__(self, drawn: Figure, *parts: str) -> dict[str, Any]:
        """Save a figure.

        Args:
            drawn: the figure.
            parts: parts of its name.

        Returns:
            The figure for the page, the name of its files, and its width in inches.
        """
        name = re.sub(r"[^A-Za-z0-9.-]+", "_", "_".join(parts)).strip("_.")[:120]
        self.names[name] += 1
        unique = name if self.names[name] == 1 else f"{name}_{self.names[name]}"
        return {
            "svg": Markup(save(drawn, self.folder, unique)),
            "name": unique,
            "inches": float(drawn.get_size_inches()[0]),
        }


def describe_section(section: Section, tables: Sequence[MetricTable], plots: Plots) -> dict[str, Any]:
    """All that the page shows of one model on its tasks.

    Args:
        section: the runs.
        tables: the metrics that have charts; the section's others are shown as tables.
        plots: saves the charts.
    """
    ranks = {method: rank for rank, method in enumerate(section.by_method)}
    lines, costs = lines_of(section, ranks), costs_of(section)
    allocation = plots(plot_allocation(lines), section.title, "allocation") if lines else None
    differences = [rows_of(table) for table in tables]
    return {
        "title": section.title,
        "metrics": [
            {
                **_table(table),
                "plot": plots(plot_metric(table, ranks), section.model, table.task, table.metric),
                "best": list(best(table)),
                "differences": _differences(table, rows, plots, ranks),
                "examples": examples_of(table, len(tables)),
            }
            for table, rows in zip(tables, differences, strict=True)
        ],
        "others": [_table(table) for table in other_tables(section, tables)],
        "allocation": allocation,
        "layers": [_layers(section, plots, *one) for one in LAYERS],
        "few": are_few(lines),
        "methods": len(section.by_method),
        "sizes": sizes_of(section),
        "cost": plots(plot_costs(costs), section.title, "cost"),
        "costs": [(label, step, cost) for label, row in costs.items() for step, cost in row.items()],
    }


def _differences(
    table: MetricTable, rows: Sequence[Row], plots: Plots, ranks: dict[Method, int]
) -> dict[str, Any] | None:
    """The chart and the table of differences to the dense model and to uniform; None if there are none."""
    known = [one for row in rows for one in (row.dense, row.uniform, row.sweep) if one is not None]
    if not any(math.isfinite(one.mean) for one in known):
        return None
    drawn = plot_differences(table, rows, ranks)
    return {
        "plot": plots(drawn, table.model, table.task, table.metric, "differences"),
        "rows": [(row, *map(_difference, (row.dense, row.uniform, row.sweep))) for row in rows],
        "resampled": max(row.items for row in rows),
        "seeds": max(row.seeds for row in rows),
        "bare": any(one.low is None for one in known),
        "uniform": any(row.uniform is not None for row in rows),
        "sweep": any(row.sweep is not None for row in rows),
    }


def _difference(one: Difference | None) -> str:
    """A difference with its interval, as the page shows it."""
    if one is None:
        return ""
    mean = signed(one.mean).replace("-", "−")
    if one.low is None or one.high is None:
        return mean
    return f"{mean} [{signed(one.low)}, {signed(one.high)}]".replace("-", "−")


def _layers(section: Section, plots: Plots, figure: str, label: str, colours: str) -> dict[str, Any] | None:
    """The maps of a figure of each layer; None if no run has it."""
    target, maps = maps_of(section, figure)
    if not maps:
        return None
    title = f"{figure.capitalize()} of every layer at target sparsity {target:g}"
    drawn = plots(plot_layers(maps, title, label, colours), section.title, "layers", figure)
    return {"figure": figure, "target": target, "plot": drawn}


def _table(table: MetricTable) -> dict[str, Any]:
    """A metric's table."""
    cells = [one for row in table.cells.values() for one in row.items()]
    counts = {len(seeds) for _, seeds in cells}
    return {
        "table": table,
        "rows": list(_table_rows(table, counted=len(counts) > 1)),
        "elsewhere": any(other_sparsity(target, seeds) is not None for target, seeds in cells),
        "repeated": max(counts) > 1,
        "seeds": f"{counts.pop()} seeds" if len(counts) == 1 else "n seeds",
    }


def _table_rows(table: MetricTable, counted: bool) -> Iterator[dict[str, Any]]:
    """Method, dense figure and one cell per sparsity, each with the number that it is sorted by."""
    for method, row in table.cells.items():
        cells = [
            (statistics(pruned(row[at]))[0], cell(at, row[at], counted)) if at in row else (None, "")
            for at in table.sparsities
        ]
        yield {
            "method": method.label,
            "dense": dense_mean(row),
            "dense_text": figure(dense_mean(row)),
            "cells": cells,
        }
