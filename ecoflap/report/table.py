"""One table per sweep: methods down, sparsities across, mean and standard deviation over seeds.

python -m ecoflap.report.table outputs/<sweep> [--csv FILE]
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

from ecoflap.results.record import FILE_NAME, Result


class Method(NamedTuple):
    """One row of the table: what was run, and the headline ``task/metric`` that it is judged by."""

    model: str
    pruner: str
    score: str
    metric: str


@dataclass(frozen=True)
class Run:
    """What the table needs of one run.

    Attributes:
        pruned: Headline metric after pruning.
        dense: The same before pruning, or None when the dense model was not evaluated.
    """

    method: Method
    sparsity: float
    seed: int
    pruned: float
    dense: float | None


Cells = dict[Method, dict[float, dict[int, Run]]]
"""Method -> sparsity -> seed -> run."""


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit code, 2 when there is nothing to show or a record cannot be read."""
    parser = argparse.ArgumentParser(prog="python -m ecoflap.report.table", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help=f"folder of a sweep; every {FILE_NAME} below it is read")
    parser.add_argument("--csv", type=Path, help="also write one line per method and sparsity to this file")
    options = parser.parse_args(arguments)
    try:
        cells = group(read_runs(options.folder))
    except (FileNotFoundError, ValueError) as error:
        print(f"no table: {error}", file=sys.stderr)
        return 2
    print("\n".join(markdown(cells)))
    if options.csv:
        write_csv(options.csv, cells)
    return 0


def read_runs(folder: Path) -> Iterator[Run]:
    """Every run below a folder, oldest first.

    Raises:
        FileNotFoundError: There is no result record below the folder.
        ValueError: A record cannot be read or lacks what the table needs.
    """
    paths = sorted(folder.rglob(FILE_NAME), key=lambda path: (path.stat().st_mtime_ns, path))
    if not paths:
        raise FileNotFoundError(f"no {FILE_NAME} below {folder}: give the folder of a finished run or sweep")
    for path in paths:
        try:
            yield to_run(Result.read(path))
        except (KeyError, TypeError, StopIteration) as error:
            raise ValueError(f"{path} lacks what the table is made of (model, pruner, score, sparsity, seed, a pruned metric): {error!r}") from error


def to_run(result: Result) -> Run:
    """The table's view of one record."""
    config = result.config
    task, metrics = next(iter(result.metrics["pruned"].items()))
    metric, value = next(iter(metrics.items()))
    coarse = "file" if config.get("allocation", {}).get("name") == "file" else config["score"]["name"]
    method = Method(config["model"]["name"], config["pruner"]["name"], coarse, f"{task}/{metric}")
    dense = result.metrics.get("dense", {}).get(task, {}).get(metric)
    return Run(method, float(config["sparsity"]), config["seed"], value, dense)


def group(runs: Iterable[Run]) -> Cells:
    """Runs by method, sparsity and seed; of two runs that agree in all three the later one counts, and stderr says so."""
    cells: Cells = defaultdict(lambda: defaultdict(dict))
    for run in runs:
        seeds = cells[run.method][run.sparsity]
        if run.seed in seeds:
            print(f"two runs of {'/'.join(run.method)} at sparsity {run.sparsity} have seed {run.seed}: the newer one is shown", file=sys.stderr)
        seeds[run.seed] = run
    return cells


def statistics(values: list[float]) -> tuple[float, float | None]:
    """Mean and sample standard deviation; None for the latter when there is one value."""
    mean = fmean(values)
    return mean, (sum((value - mean) ** 2 for value in values) / (len(values) - 1)) ** 0.5 if len(values) > 1 else None


def markdown(cells: Cells) -> Iterator[str]:
    """The lines of a GitHub table; a cell is ``mean ± deviation (n)``."""
    sparsities = sorted({sparsity for row in cells.values() for sparsity in row})
    headings = [*Method._fields, "dense", *(f"{sparsity:g}" for sparsity in sparsities)]
    yield _line(headings)
    yield _line(["---"] * len(Method._fields) + ["---:"] * (len(headings) - len(Method._fields)))
    for method in sorted(cells):
        row = cells[method]
        everything = [run for seeds in row.values() for run in seeds.values()]
        yield _line([*method, _dense(everything), *(_cell(list(row[sparsity].values())) if sparsity in row else "" for sparsity in sparsities)])


def write_csv(path: Path, cells: Cells) -> None:
    """One line per method and sparsity, figures at full precision."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow([*Method._fields, "sparsity", "n", "mean", "deviation", "dense"])
        for method in sorted(cells):
            for sparsity, seeds in sorted(cells[method].items()):
                values = [run.pruned for run in seeds.values()]
                writer.writerow([*method, sparsity, len(values), *statistics(values), _dense_mean(seeds.values())])


def _cell(runs: list[Run]) -> str:
    """``mean ± deviation (n)`` of the pruned metric."""
    mean, deviation = statistics([run.pruned for run in runs])
    return f"{mean:.4g} (n={len(runs)})" if deviation is None else f"{mean:.4g} ± {deviation:.2g} (n={len(runs)})"


def _dense(runs: list[Run]) -> str:
    """The dense model's metric, empty when it was not evaluated."""
    mean = _dense_mean(runs)
    return "" if mean is None else f"{mean:.4g}"


def _dense_mean(runs: Iterable[Run]) -> float | None:
    """Mean over the runs that evaluated the dense model; None when none did."""
    values = [run.dense for run in runs if run.dense is not None]
    return fmean(values) if values else None


def _line(cells: Iterable[Any]) -> str:
    """One line of a GitHub table."""
    return f"| {' | '.join(map(str, cells))} |"


if __name__ == "__main__":
    sys.exit(main())
