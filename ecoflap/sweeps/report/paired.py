"""Allocations against the uniform one, paired by seed, with intervals and the cost of the coarse stage.

ecoflap report paired SWEEP [--metric TASK/METRIC]
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from ecoflap.console.arguments import ArgumentParser, complain
from ecoflap.errors import UserError
from ecoflap.storage.file_names import RESULT
from ecoflap.storage.markdown import markdown_row
from ecoflap.sweeps.report.baselines import uniform_beside
from ecoflap.sweeps.report.cells import statistics
from ecoflap.sweeps.report.intervals import difference, interval, mean_difference
from ecoflap.sweeps.report.methods import Method
from ecoflap.sweeps.report.metrics import MetricTable, make_tables
from ecoflap.sweeps.report.runs import COARSE_STEPS, Run, read_runs
from ecoflap.sweeps.report.sections import make_sections
from ecoflap.sweeps.report.table import figure


class Row(NamedTuple):
    """A method beside the uniform allocation under the same pruner, at one sparsity.

    Attributes:
        table: the metric.
        method: the method.
        sparsity: the target.
        uniform: the uniform allocation's figures, seed by seed.
        figures: the method's, in the same order of seeds.
        seconds: the most that a run's coarse stage took; None if all read it from the cache.
    """

    table: MetricTable
    method: Method
    sparsity: float
    uniform: list[float]
    figures: list[float]
    seconds: float | None


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit code: 2 if there is nothing to show."""
    parser = ArgumentParser(prog="ecoflap report paired", description=__doc__)
    parser.add_argument("folder", type=Path, help=f"folder of a sweep; every {RESULT} below it is read")
    parser.add_argument(
        "--metric", action="append", default=[], help="TASK/METRIC instead of each task's first; repeatable"
    )
    options = parser.parse_args(arguments)
    try:
        found = list(rows(make_tables(make_sections(read_runs(options.folder)), options.metric)))
        if not found:
            raise UserError(
                f"below {options.folder} no allocation has the seed, sparsity and pruner of a uniform one"
                " (score=none allocation=water_filling) on the same calibration samples; add these runs"
            )
    except UserError as error:
        return complain(f"no table: {error}")
    print("\n".join(markdown(found)))
    return 0


def rows(tables: Sequence[MetricTable]) -> Iterator[Row]:
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
                    yield Row(
                        table,
                        method,
                        sparsity,
                        [beside[seed].pruned for seed in shared],
                        [seeds[seed].pruned for seed in shared],
                        _coarse_seconds(by_method[method]),
                    )


def _coarse_seconds(runs: Iterable[Run]) -> float | None:
    """The most seconds that the coarse stage took in a run that did not read it from the cache."""
    coarse = ([cost for step, cost in run.result.steps.items() if step in COARSE_STEPS] for run in runs)
    computed = (costs for costs in coarse if not any(cost["cached"] for cost in costs))
    return max((sum(float(cost["seconds"]) for cost in costs) for costs in computed), default=None)


def markdown(found: Sequence[Row]) -> Iterator[str]:
    """The lines of a GitHub table; ``verdict`` is better or worse where the interval leaves out zero.

    So it is where one of the two figures is infinite with every seed, and the other finite.
    """
    columns = ["model", "metric", "sparsity", "pruner", "allocation", "n", "uniform", "mean", "difference"]
    yield markdown_row([*columns, "verdict", "coarse seconds"])
    yield markdown_row(["---"] * 5 + ["---:"] * 4 + ["---", "---:"])
    order = sorted(found, key=lambda row: (row.table.model, row.table.name, row.sparsity, row.method.order))
    for row in order:
        differences = [difference(*pair) for pair in zip(row.figures, row.uniform, strict=True)]
        mean, half = mean_difference(differences), interval(differences)
        yield markdown_row(
            [
                row.table.model,
                row.table.metric,
                f"{row.sparsity:g}",
                row.method.pruner,
                row.method.coarse,
                len(differences),
                figure(statistics(row.uniform)[0]),
                figure(statistics(row.figures)[0]),
                f"{mean:+.3g}" if half is None else f"{mean:+.3g} ± {half:.2g}",
                _verdict(differences, row.table.smaller_is_better),
                "" if row.seconds is None else f"{row.seconds:.3g}",
            ]
        )


def _verdict(differences: Sequence[float], smaller_is_better: bool) -> str:
    mean, half = mean_difference(differences), interval(differences)
    if len(differences) == 1:
        return "one seed"
    if half is None and not (math.isinf(mean) and all(map(math.isinf, differences))):
        return "no difference" if mean == 0 else "no verdict"
    if half is not None and abs(mean) <= half:
        return "no difference"
    return "better" if (mean < 0) == smaller_is_better else "worse"
