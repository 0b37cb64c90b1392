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
from ecoflap.sweeps.report.cells import statistics
from ecoflap.sweeps.report.methods import AXES, Method, is_path, settings_of, shown
from ecoflap.sweeps.report.metrics import MetricTable, make_tables
from ecoflap.sweeps.report.runs import COARSE_STEPS, SWEEP, Run, read_runs
from ecoflap.sweeps.report.sections import make_sections
from ecoflap.sweeps.report.table import figure

OF_COARSE = ("score.", "allocation.")
STUDENT = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365, 9: 2.306, 10: 2.262}
"""{number of differences: the 97.5 % quantile of Student's t with one degree of freedom less}."""
NORMAL = 1.959964  # the quantile of the normal distribution
ROUNDING = 1e-9  # the relative difference below which two numbers differ by rounding only, with a margin


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


def uniform_beside(method: Method, table: MetricTable) -> Method | None:
    """The uniform allocation that was run as the method was; None for itself, or if there is none.

    Nothing may differ but score and allocation, and ``propagate``, which ``auto`` chooses by the allocation;
    one with the same ``propagate`` comes before others. Only keys that both have are compared. Paths may
    differ, but not the calibration samples that each seed drew.
    """
    if method.score in ("none", "global"):
        return None
    runs = table.section.by_method
    own = _others(runs[method][0])
    like = "none", method.pruner, method.sweep, runs[method][0].finetuner

    def is_beside(one: Method) -> bool:
        if (one.score, one.pruner, one.sweep, runs[one][0].finetuner) != like:
            return False
        others = _others(runs[one][0])
        alike = all(others[key] == own[key] for key in others.keys() & own.keys())
        return alike and _drew_the_same(runs[one], runs[method])

    found = list(filter(is_beside, table.cells))
    propagate = runs[method][0].config.get("propagate")
    alike = (one for one in found if runs[one][0].config.get("propagate") == propagate)
    return next(alike, found[0] if found else None)


def _others(run: Run) -> dict[str, str]:
    """The settings of a run but for its coarse stage, its place in the sweep, and paths."""
    return {
        key: shown(value)
        for key, value in settings_of(run).items()
        if key not in (*AXES, SWEEP, "propagate")
        and not key.startswith(OF_COARSE)
        and not is_path(key, value)
    }


def _drew_the_same(some: Iterable[Run], others: Iterable[Run]) -> bool:
    """Whether runs of two methods share a sparsity and seed, and wherever they do, their calibration samples.

    A run that used none, such as one of magnitude with the uniform allocation, agrees with any.
    """
    drawn = {(run.sparsity, run.seed): run.samples for run in some}
    pairs = [(drawn[at], run.samples) for run in others if (at := (run.sparsity, run.seed)) in drawn]
    return bool(pairs) and all(one == other for one, other in pairs if one and other)


def _coarse_seconds(runs: Iterable[Run]) -> float | None:
    """The most seconds that the coarse stage took in a run that did not read it from the cache."""
    coarse = ([cost for step, cost in run.result.steps.items() if step in COARSE_STEPS] for run in runs)
    computed = (costs for costs in coarse if not any(cost["cached"] for cost in costs))
    return max((sum(float(cost["seconds"]) for cost in costs) for costs in computed), default=None)


def interval(differences: Sequence[float]) -> float | None:
    """Half the width of the 95 % interval of the mean difference (Student's t); None if it has none.

    That is where there are fewer than two differences, one is not a finite number, or all are the same.
    """
    deviation = statistics(differences)[1]
    if deviation is None or not deviation > ROUNDING * max(map(abs, differences)):
        return None
    return student(len(differences)) * deviation / math.sqrt(len(differences))


def student(count: int) -> float:
    """The 97.5 % quantile of Student's t for a number of differences of at least two.

    Beyond ten, by its expansion in one over the degrees of freedom (Abramowitz and Stegun, 26.7.5).
    """
    if count in STUDENT:
        return STUDENT[count]
    z, freedom = NORMAL, count - 1
    first = (z**3 + z) / (4 * freedom)
    second = (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * freedom**3)
    return z + first + second + third


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


def difference(figure: float, uniform: float) -> float:
    """The difference of two figures; exactly zero if they differ by rounding only."""
    return 0.0 if figure != uniform and math.isclose(figure, uniform, rel_tol=ROUNDING) else figure - uniform


def mean_difference(differences: Sequence[float]) -> float:
    """The mean difference; exactly zero if the differences cancel but for rounding."""
    mean = statistics(differences)[0]
    cancelled = math.isfinite(mean) and abs(mean) <= ROUNDING * max(map(abs, differences))
    return 0.0 if cancelled else mean


def _verdict(differences: Sequence[float], smaller_is_better: bool) -> str:
    mean, half = mean_difference(differences), interval(differences)
    if len(differences) == 1:
        return "one seed"
    if half is None and not (math.isinf(mean) and all(map(math.isinf, differences))):
        return "no difference" if mean == 0 else "no verdict"
    if half is not None and abs(mean) <= half:
        return "no difference"
    return "better" if (mean < 0) == smaller_is_better else "worse"
