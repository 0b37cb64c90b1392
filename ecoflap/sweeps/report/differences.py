"""Differences to the dense model, the uniform allocation and another sweep, each with a 95 % interval.

Runs are paired: the same items, and but for the dense model the same seeds. Where runs keep the scores of
their items, the interval is the percentile interval of a bootstrap over items and seeds, which are drawn
independently of each other (a crossed bootstrap). Elsewhere it is Student's over seeds, and a single run has
none.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ecoflap.sweeps.report.baselines import in_first_sweep, uniform_beside
from ecoflap.sweeps.report.cells import Cell
from ecoflap.sweeps.report.intervals import difference, interval, mean_difference
from ecoflap.sweeps.report.item_scores import ItemScores, read_item_scores
from ecoflap.sweeps.report.methods import Method
from ecoflap.sweeps.report.metrics import MetricTable

RESAMPLES = 2000
AT_ONCE = 2**24
"""Weights that are drawn at once; larger tasks are resampled in parts."""

Array = NDArray[np.float64]
Resampled = dict[tuple[Method, float, int], tuple[Array, Array | None]]
"""(method, sparsity, seed) -> the metric of the pruned and of the dense model in each resample."""


class Difference(NamedTuple):
    """A mean difference over seeds.

    Attributes:
        mean: the pruned model's metric minus the other's.
        low: the lower end of the interval; None if there is none.
        high: the upper end.
    """

    mean: float
    low: float | None = None
    high: float | None = None


class Row(NamedTuple):
    """A method at a sparsity.

    Attributes:
        method: the method.
        sparsity: the target.
        seeds: number of seeds.
        items: number of resampled items; 0 if the interval is over seeds alone.
        dense: the difference to the dense model; None if it was not measured.
        uniform: the difference to the uniform allocation; None for itself, or without a paired one.
        sweep: the difference to the same method of the first sweep; None for itself, or without a paired one.
    """

    method: Method
    sparsity: float
    seeds: int
    items: int
    dense: Difference | None
    uniform: Difference | None
    sweep: Difference | None = None


def rows_of(table: MetricTable) -> list[Row]:
    """The rows of a metric, by sparsity and then in the order of methods."""
    resampled, items = _resample(table)
    rows = [
        Row(
            method,
            sparsity,
            len(seeds),
            items if all((method, sparsity, seed) in resampled for seed in seeds) else 0,
            _to_dense(method, sparsity, seeds, resampled),
            _to_method(uniform_beside(method, table), table, method, sparsity, resampled),
            _to_method(in_first_sweep(method, table), table, method, sparsity, resampled),
        )
        for method, by_sparsity in table.cells.items()
        for sparsity, seeds in by_sparsity.items()
    ]
    return sorted(rows, key=lambda row: row.sparsity)


def _to_dense(method: Method, sparsity: float, seeds: Cell, resampled: Resampled) -> Difference | None:
    pairs = {seed: (one.pruned, one.dense) for seed, one in seeds.items() if one.dense is not None}
    drawn = [
        (found[0], found[1])
        for seed in pairs
        if (found := resampled.get((method, sparsity, seed))) is not None and found[1] is not None
    ]
    return _difference(list(pairs.values()), drawn)


def _to_method(
    baseline: Method | None, table: MetricTable, method: Method, sparsity: float, resampled: Resampled
) -> Difference | None:
    if baseline is None:
        return None
    seeds, beside = table.cells[method][sparsity], table.cells[baseline].get(sparsity, {})
    shared = [seed for seed in seeds if seed in beside]
    drawn = [
        (mine[0], other[0])
        for seed in shared
        if (mine := resampled.get((method, sparsity, seed))) is not None
        and (other := resampled.get((baseline, sparsity, seed))) is not None
    ]
    return _difference([(seeds[seed].pruned, beside[seed].pruned) for seed in shared], drawn)


def _difference(
    pairs: Sequence[tuple[float, float]], drawn: Sequence[tuple[Array, Array]]
) -> Difference | None:
    """The mean difference of pairs, and the interval that their resamples or else their spread give."""
    if not pairs:
        return None
    values = [difference(*pair) for pair in pairs]
    mean = mean_difference(values)
    if not math.isfinite(mean):
        return Difference(mean)
    if len(drawn) == len(pairs):
        by_seed = np.stack([mine - other for mine, other in drawn])  # [seeds, resamples]
        generator = np.random.default_rng(0)
        picked = generator.integers(len(by_seed), size=by_seed.shape)
        means = np.take_along_axis(by_seed, picked, axis=0).mean(axis=0)
        low, high = np.percentile(means, (2.5, 97.5))
        return Difference(mean, float(low), float(high))
    half = interval(values)
    return Difference(mean) if half is None else Difference(mean, mean - half, mean + half)


def _resample(table: MetricTable) -> tuple[Resampled, int]:
    """The metric of each run in each resample of the items, and the number of items.

    All runs are resampled alike, which keeps the pairs; a run without scores of these items is left out.
    """
    found = dict(_scores(table))
    items = max((len(scores.pruned) for scores in found.values()), default=0)
    alike = {key: scores for key, scores in found.items() if len(scores.pruned) == items > 1}
    if not alike:
        return {}, 0
    rows = [np.asarray(row, dtype=float) for one in alike.values() for row in (one.pruned, one.dense) if row]
    drawn = iter(_means(np.stack(rows)))
    exponential = next(iter(alike.values())).exponential
    scaled: Callable[[Array], Array] = np.exp if exponential else lambda means: 100 * means
    return {
        key: (scaled(next(drawn)), scaled(next(drawn)) if scores.dense else None)
        for key, scores in alike.items()
    }, items


def _scores(table: MetricTable) -> Iterator[tuple[tuple[Method, float, int], ItemScores]]:
    for method, run in zip(table.section.methods, table.section.runs, strict=True):
        scores = read_item_scores(run, table.task)
        if scores is not None and scores.metric == table.metric:
            yield (method, run.sparsity, run.seed), scores


def _means(scores: Array) -> Array:
    """The mean of each row over resampled items: [rows, items] -> [rows, resamples]."""
    generator, items = np.random.default_rng(0), scores.shape[1]
    means, chunk = [], max(1, AT_ONCE // items)
    for start in range(0, RESAMPLES, chunk):
        counts = generator.multinomial(items, np.full(items, 1 / items), size=min(chunk, RESAMPLES - start))
        means.append(scores @ counts.T / items)
    return np.concatenate(means, axis=1)
