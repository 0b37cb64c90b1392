"""What fine-tuning brought back: dense, pruned and fine-tuned, mean and standard deviation over seeds.

python -m ecoflap.report.recovery SWEEP [--metric METRIC]
"""

from __future__ import annotations

import argparse
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from ecoflap.file_names import RESULT
from ecoflap.report.table import statistics
from ecoflap.results.record import Result, first_metric

STATES = ("dense", "pruned", "finetuned")


class Kind(NamedTuple):
    """Runs that differ by their seed only."""

    model: str
    pruner: str
    score: str
    finetune: str
    metric: str
    sparsity: float


Runs = dict[Kind, list[tuple[float, float, float]]]


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit code, 2 when there is nothing to show."""
    parser = argparse.ArgumentParser(
        prog="python -m ecoflap.report.recovery", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help=f"folder of a sweep; every {RESULT} of a fine-tuned model below it is read")
    parser.add_argument("--metric", help="another metric than each task's first")
    options = parser.parse_args(arguments)
    try:
        runs = read(options.folder, options.metric)
    except (FileNotFoundError, ValueError) as error:
        print(f"no table: {error}", file=sys.stderr)
        return 2
    print("\n".join(markdown(runs)))
    return 0


def read(folder: Path, metric: str | None) -> Runs:
    """The three figures of every fine-tuned run below a folder.

    Raises:
        FileNotFoundError: there is no such run.
        ValueError: a record cannot be read.
    """
    runs: Runs = defaultdict(list)
    for path in sorted(folder.rglob(RESULT)):
        result = Result.read(path)
        if "finetuned" not in result.metrics:
            continue
        task, metrics = next(iter(result.metrics["finetuned"].items()))
        name = metric if metric is not None else first_metric(metrics)
        if name in metrics:
            config = result.config
            kind = Kind(
                config["model"]["name"], config["pruner"]["name"], config["score"]["name"], config["finetune"]["name"], name, config["sparsity"]
            )
            dense, pruned, finetuned = (result.metrics[state][task][name] for state in STATES)
            runs[kind].append((dense, pruned, finetuned))
    if not runs:
        raise FileNotFoundError(f"no {RESULT} of a fine-tuned model below {folder}, or none with that metric")
    return runs


def markdown(runs: Runs) -> Iterator[str]:
    """The lines of a GitHub table. ``recovered`` is the mean of what fine-tuning gained over the mean of what pruning had cost."""
    yield _line((*Kind._fields, "n", *STATES, "recovered"))
    yield _line(["---"] * 5 + ["---:"] * 6)
    for kind in sorted(runs):
        dense, pruned, finetuned = (list(column) for column in zip(*runs[kind], strict=True))
        lost, gained = sum(dense) - sum(pruned), sum(finetuned) - sum(pruned)
        recovered = "nothing lost" if lost == 0 else f"{gained / lost:.0%}"
        yield _line((*kind[:5], f"{kind.sparsity:g}", len(dense), _cell(dense), _cell(pruned), _cell(finetuned), recovered))


def _cell(values: list[float]) -> str:
    mean, deviation = statistics(values)
    return f"{mean:.4g}" if not deviation or deviation < 1e-9 * abs(mean) else f"{mean:.4g} ± {deviation:.2g}"


def _line(cells: Iterable[object]) -> str:
    return f"| {' | '.join(map(str, cells))} |"


if __name__ == "__main__":
    sys.exit(main())
