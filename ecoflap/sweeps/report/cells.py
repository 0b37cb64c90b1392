"""The cells of a table: one metric's figure for each seed of a method at a sparsity, and their means."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean
from typing import NamedTuple

from ecoflap.sweeps.report.methods import Method


class Measured(NamedTuple):
    """One run's figures.

    Attributes:
        pruned: the metric of the pruned model.
        dense: the metric of the dense model; None if it was not measured.
        realised: the share of the prunable weights that are gone; None where it is unknown.
    """

    pruned: float
    dense: float | None
    realised: float | None = None


Cell = dict[int, Measured]
"""Seed -> figures."""
Cells = dict[Method, dict[float, Cell]]
"""Method -> sparsity -> cell."""


def statistics(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean and sample standard deviation; None for the latter if there is only one value.

    Perplexities may be so large that their squares overflow.
    """
    mean = math.nan if {math.inf, -math.inf} <= set(values) else fmean(values)
    if len(values) < 2:
        return mean, None
    if not math.isfinite(mean):
        return mean, math.nan
    return mean, math.hypot(*(value - mean for value in values)) / math.sqrt(len(values) - 1)


def pruned(cell: Cell) -> list[float]:
    """The pruned models' figures in a cell."""
    return [one.pruned for one in cell.values()]


def other_sparsity(target: float, cell: Cell) -> float | None:
    """The mean of a cell's realised sparsities if it differs from the target in three digits; else None."""
    realised = realised_mean(cell)
    return None if realised is None or f"{realised:.3f}" == f"{target:.3f}" else realised


def realised_mean(cell: Cell) -> float | None:
    """The mean of a cell's realised sparsities; None if they are unknown."""
    values = [one.realised for one in cell.values() if one.realised is not None]
    return fmean(values) if values else None


def dense_mean(row: dict[float, Cell]) -> float | None:
    """Mean of the dense model over the runs of a method that measured it; None if none did."""
    values = [one.dense for cell in row.values() for one in cell.values() if one.dense is not None]
    return fmean(values) if values else None
