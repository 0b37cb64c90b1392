"""Allocations against the uniform one, paired by seed, with intervals and the cost of the coarse stage.

ecoflap report paired SWEEP [--models-across]
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence

from ecoflap.console.arguments import ArgumentParser, complain, given_path
from ecoflap.errors import UserError
from ecoflap.storage.file_names import RESULT
from ecoflap.storage.markdown import markdown_row
from ecoflap.sweeps.report import models_across
from ecoflap.sweeps.report.cells import statistics
from ecoflap.sweeps.report.digits import figure, short
from ecoflap.sweeps.report.metrics import make_tables
from ecoflap.sweeps.report.pairs import Pairs, metric_names, paired
from ecoflap.sweeps.report.runs import hardware_of, read_runs
from ecoflap.sweeps.report.sections import make_sections


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit code: 2 if there is nothing to show."""
    parser = ArgumentParser(prog="ecoflap report paired", description=__doc__)
    parser.add_argument("folder", type=given_path, help=f"folder of a sweep; every {RESULT} below it is read")
    parser.add_argument(
        "--metric", action="append", default=[], help="TASK/METRIC instead of each task's first; repeatable"
    )
    parser.add_argument(
        "--models-across",
        action="store_true",
        help="a table with a column for each model, per pruner and sparsity, after a summary of verdicts",
    )
    options = parser.parse_args(arguments)
    try:
        runs = read_runs(options.folder)
        found = list(paired(make_tables(make_sections(runs), options.metric)))
        if not found:
            raise UserError(
                f"below {options.folder} no allocation has the seed, sparsity and pruner of a uniform one"
                " (score=none allocation=water_filling) on the same calibration samples; add these runs"
            )
    except UserError as error:
        return complain(f"no table: {error}")
    print("\n".join((models_across.markdown if options.models_across else markdown)(found)))
    if len(machines := hardware_of(runs)) > 1:
        print(f"note: seconds can't be compared across hardware: {'; '.join(machines)}", file=sys.stderr)
    return 0


def markdown(found: Sequence[Pairs]) -> Iterator[str]:
    """The lines of a GitHub table: a row for each model, metric, sparsity and method."""
    names = metric_names(found)
    columns = ["model", "metric", "sparsity", "pruner", "allocation", "n", "uniform", "mean", "difference"]
    yield markdown_row([*columns, "verdict", "coarse seconds"])
    yield markdown_row(["---"] * 5 + ["---:"] * 4 + ["---", "---:"])
    for pairs in sorted(
        found, key=lambda one: (one.table.model, one.table.name, one.sparsity, one.method.order)
    ):
        yield markdown_row(
            [
                pairs.table.model,
                names[id(pairs.table)],
                f"{pairs.sparsity:g}",
                pairs.method.pruner,
                pairs.method.coarse,
                len(pairs.differences),
                figure(statistics(pairs.uniform)[0]),
                figure(pairs.mean),
                pairs.change,
                pairs.verdict,
                short(pairs.seconds),
            ]
        )
