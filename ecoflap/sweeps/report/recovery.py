"""What fine-tuning recovers: dense, pruned and fine-tuned, mean and standard deviation over seeds.

ecoflap report recovery SWEEP [--metric METRIC]
"""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from ecoflap.console.arguments import ArgumentParser, complain, given_path
from ecoflap.errors import UserError
from ecoflap.storage.file_names import RESULT
from ecoflap.storage.markdown import markdown_row
from ecoflap.storage.results.metrics import first_metric
from ecoflap.sweeps.report.cells import statistics
from ecoflap.sweeps.report.digits import figure, with_deviation
from ecoflap.sweeps.report.methods import overrides
from ecoflap.sweeps.report.runs import read_runs
from ecoflap.sweeps.report.sections import make_sections

STATES = ("dense", "pruned", "finetuned")
DASH = "—"


class Kind(NamedTuple):
    """Runs that differ in their seed only; ``settings`` are the further options that distinguish kinds."""

    model: str
    pruner: str
    coarse_stage: str
    finetune: str
    settings: str
    metric: str
    sparsity: float


Runs = dict[tuple[Kind, tuple[str, ...]], list[tuple[float, float, float]]]
"""Kind and tasks -> figures; runs on other tasks may differ in options that neither's kind names."""


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit code: 2 if there is nothing to show."""
    parser = ArgumentParser(prog="ecoflap report recovery", description=__doc__)
    parser.add_argument(
        "folder",
        type=given_path,
        help=f"folder of a sweep; every {RESULT} of a fine-tuned model below it is read",
    )
    parser.add_argument("--metric", help="another metric than each task's first")
    options = parser.parse_args(arguments)
    try:
        runs = read(options.folder, options.metric)
    except UserError as error:
        return complain(f"no table: {error}")
    print("\n".join(markdown(runs)))
    return 0


def read(folder: Path, metric: str | None) -> Runs:
    """The figures of every fine-tuned run below a folder; of equal runs, those of the newest.

    Args:
        folder: the folder.
        metric: name of the metric; None for each task's first.

    Raises:
        UserError: if there is no such run, or a record can't be read.
    """
    found: Runs = defaultdict(list)
    sections = make_sections([run for run in read_runs(folder) if "finetuned" in run.result.metrics])
    tasks = {
        section.model: {task for other in sections if other.model == section.model for task in other.tasks}
        for section in sections
    }
    for section in sections:
        for method, runs in section.by_method.items():
            for run, task in itertools.product(runs, section.tasks):
                finetuned = run.result.metrics["finetuned"][task]
                name = metric if metric is not None else first_metric(finetuned)
                if name is None or name not in finetuned:
                    continue
                kind = Kind(
                    model=section.model,
                    pruner=method.pruner,
                    coarse_stage=method.score,
                    finetune=run.config["finetune"]["name"],
                    settings=overrides(one for one in method.settings if one[0] != "finetune"),
                    metric=f"{task}/{name}" if len(tasks[section.model]) > 1 else name,
                    sparsity=run.sparsity,
                )
                before = (run.result.metrics.get(state, {}).get(task, {}) for state in STATES[:2])
                dense, pruned = (figures.get(name, math.nan) for figures in before)
                found[kind, section.tasks].append((dense, pruned, finetuned[name]))
    if not found:
        raise UserError(f"no {RESULT} of a fine-tuned model below {folder}, or none with that metric")
    return found


def markdown(runs: Runs) -> Iterator[str]:
    """The lines of a GitHub table.

    ``recovered`` is the mean gain of fine-tuning over the mean loss of pruning; a dash where these are not
    finite, and for a figure that is NaN or was not measured.
    """
    # A column of settings only where there are any.
    columns = [name for name in Kind._fields if name != "settings" or any(kind.settings for kind, _ in runs)]
    yield markdown_row((*(name.replace("_", " ") for name in columns), "n", *STATES, "recovered"))
    yield markdown_row(["---"] * (len(columns) - 1) + ["---:"] * 6)
    for (kind, _), some in sorted(runs.items()):
        dense, pruned, finetuned = (list(column) for column in zip(*some, strict=True))
        names = [getattr(kind, name) for name in columns[:-1]]
        figures = map(_cell, (dense, pruned, finetuned))
        yield markdown_row(
            (
                *names,
                f"{kind.sparsity:g}",
                len(dense),
                *figures,
                _recovered(sum(dense), sum(pruned), sum(finetuned)),
            )
        )


def _recovered(dense: float, pruned: float, finetuned: float) -> str:
    if not all(map(math.isfinite, (dense, pruned, finetuned))):
        return DASH
    if math.isclose(dense, pruned, rel_tol=1e-9):
        return "nothing lost"
    return f"{(finetuned - pruned) / (dense - pruned):.0%}"


def _cell(values: list[float]) -> str:
    if any(map(math.isnan, values)):
        return DASH
    mean, deviation = statistics(values)
    return figure(mean) if not deviation or deviation < 1e-9 * abs(mean) else with_deviation(mean, deviation)
