"""Runs paired with those of the uniform allocation that share pruner, sparsity and seed."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from ecoflap.sweeps.report.baselines import uniform_beside
from ecoflap.sweeps.report.cells import statistics
from ecoflap.sweeps.report.digits import signed, with_interval
from ecoflap.sweeps.report.intervals import difference, interval, mean_difference
from ecoflap.sweeps.report.methods import Method
from ecoflap.sweeps.report.metrics import MetricTable
from ecoflap.sweeps.report.runs import COARSE_STEPS, Run

BETTER = "better"
WORSE = "worse"


@dataclass(frozen=True)
class Pairs:
    """The runs of a method beside those of the uniform allocation, at one sparsity.

    Attributes:
        table: the metric.
        method: the method.
        baseline: the uniform allocation that was run as the method was.
        sparsity: the target.
        uniform: the uniform allocation's figures, seed by seed.
        figures: the method's, in the same order of seeds.
        seconds: the most that a run's coarse stage took; None if all read some of it from the cache.
    """

    table: MetricTable
    method: Method
    baseline: Method
    sparsity: float
    uniform: Sequence[float]
    figures: Sequence[float]
    seconds: float | None

    @cached_property
    def differences(self) -> list[float]:
        """The method's figure less the uniform allocation's, seed by seed."""
        return [difference(*pair) for pair in zip(self.figures, self.uniform, strict=True)]

    @property
    def mean(self) -> float:
        """The mean of the method's figures."""
        return statistics(self.figures)[0]

    @property
    def change(self) -> str:
        """The mean difference; if it has an interval, ``difference ± half of it``, with as many decimals."""
        mean, half = mean_difference(self.differences), interval(self.differences)
        return signed(mean) if half is None else with_interval(mean, half)

    @property
    def verdict(self) -> str:
        """Better or worse where the interval leaves out zero.

        Without an interval, an infinite figure beside a finite one with every seed decides as well.
        """
        mean, half = mean_difference(self.differences), interval(self.differences)
        if len(self.differences) == 1:
            return "one seed"
        if half is None and not (math.isinf(mean) and all(map(math.isinf, self.differences))):
            return "no difference" if mean == 0 else "no verdict"
        if half is not None and abs(mean) <= half:
            return "no difference"
        return BETTER if (mean < 0) == self.table.smaller_is_better else WORSE


def paired(tables: Sequence[MetricTable]) -> Iterator[Pairs]:
    """Each method with a coarse stage beside the uniform allocation, for the seeds that both have."""
    for table in tables:
        by_method = table.section.by_method
        for method, cells in table.cells.items():
            baseline = uniform_beside(method, table)
            if baseline is None:
                continue
            for sparsity, seeds in cells.items():
                beside = table.cells[baseline].get(sparsity, {})
                shared = [seed for seed in sorted(seeds) if seed in beside]
                if shared:
                    yield Pairs(
                        table,
                        method,
                        baseline,
                        sparsity,
                        [beside[seed].pruned for seed in shared],
                        [seeds[seed].pruned for seed in shared],
                        _coarse_seconds(by_method[method]),
                    )


def metric_names(found: Iterable[Pairs]) -> dict[int, str]:
    """{id of a table: its metric, with the task where several tasks of its model have that metric}."""
    tables = {id(pairs.table): pairs.table for pairs in found}
    tasks: dict[tuple[str, str], set[str]] = defaultdict(set)
    for table in tables.values():
        tasks[table.model, table.metric].add(table.task)
    return {
        key: table.name if len(tasks[table.model, table.metric]) > 1 else table.metric
        for key, table in tables.items()
    }


def _coarse_seconds(runs: Iterable[Run]) -> float | None:
    """The most seconds that the coarse stage took in a run that read nothing of it from the cache."""
    coarse = ([cost for step, cost in run.result.steps.items() if step in COARSE_STEPS] for run in runs)
    computed = (costs for costs in coarse if not any(map(_read, costs)))
    return max((sum(float(cost["seconds"]) for cost in costs) for costs in computed), default=None)


def _read(cost: Mapping[str, Any]) -> bool:
    """Whether a step read something from the cache, whose seconds are not among its own."""
    return bool(cost["cached"] or cost.get("recalled"))
