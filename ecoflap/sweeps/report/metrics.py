"""The figures of a report: a metric by method, sparsity and seed."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from ecoflap.errors import UserError, did_you_mean
from ecoflap.storage.results.metrics import HIGHER_IS_BETTER, LM_EVAL, LMMS_EVAL, first_metric, is_count
from ecoflap.sweeps.report.cells import Cell, Cells, Measured, dense_mean, pruned, statistics
from ecoflap.sweeps.report.sections import Section

PERCENT = {"accuracy", "recall", "top"}
PERCENT_NAMES = {"macro_f1"}
SMALLER_IS_BETTER = {
    *("perplexity", "ppl", "loss", "nll", "bits"),
    *("error", "wer", "cer", "ter", "mae", "mse", "rmse", "brier", "ece"),
    *("bias", "diff"),
}
CHANGE = "_change"
"""End of the name of a metric's change against the dense model."""


@dataclass(frozen=True)
class MetricTable:
    """One metric of one section.

    Attributes:
        section: the runs.
        task: name of the task.
        metric: name of the metric.
        cells: its figures; methods in order, sparsities ascending.
    """

    section: Section
    task: str
    metric: str
    cells: Cells

    @property
    def model(self) -> str:
        """Name of the model."""
        return self.section.model

    @property
    def title(self) -> str:
        """The model and the task."""
        if self.task == "mean" and len(self.section.tasks) > 1:
            return f"{self.model}, mean of {len(self.section.tasks) - 1} tasks"
        return f"{self.model} on {self.task}"

    @property
    def name(self) -> str:
        """``task/metric``."""
        return f"{self.task}/{self.metric}"

    @property
    def smaller_is_better(self) -> bool:
        """Whether smaller is better, as a harness tells, or else by the words of the metric's name."""
        for task in self._evaluated:
            if (higher := _higher_is_better(self.metric, task.get(HIGHER_IS_BETTER, {}))) is not None:
                return not higher
        return not SMALLER_IS_BETTER.isdisjoint(self._words)

    @property
    def unit(self) -> str:
        """The metric's unit, by the words of its name; empty if it has none, as every one of a harness."""
        if any(task.get("metric") in (LM_EVAL, LMMS_EVAL) for task in self._evaluated):
            return ""
        if self.metric in PERCENT_NAMES or not PERCENT.isdisjoint(self._words):
            return "%"
        return "nats" if self.metric == "loss" else ""

    @property
    def label(self) -> str:
        """The metric with its unit and direction, for an axis."""
        return f"{self.metric}{', ' * bool(self.unit)}{self.unit} ({self.direction})"

    @property
    def _words(self) -> list[str]:
        return re.split(r"[^a-z]+", self.metric.lower())

    @property
    def _evaluated(self) -> Iterator[Mapping[str, Any]]:
        """What the records say of how the task is measured; of a mean, of how each task is."""
        for run in self.section.runs:
            tasks = run.result.data.get("tasks", {})
            if self.task in tasks:
                yield tasks[self.task]
            elif self.task == "mean":
                yield from tasks.values()

    @property
    def direction(self) -> str:
        """Which direction is better, in words."""
        return "lower is better" if self.smaller_is_better else "higher is better"

    @property
    def sparsities(self) -> list[float]:
        """All sparsities of the table, ascending."""
        return sorted({sparsity for row in self.cells.values() for sparsity in row})

    @property
    def dense(self) -> list[float]:
        """The dense model's lowest and highest figure over the runs; empty if it was not measured."""
        means = [dense_mean(row) for row in self.cells.values()]
        values = [mean for mean in means if mean is not None and math.isfinite(mean)]
        return [min(values), max(values)] if values else []


def make_tables(sections: Sequence[Section], asked: Sequence[str] = ()) -> list[MetricTable]:
    """The tables of the given metrics, or of each task's first metric.

    Args:
        sections: the runs.
        asked: metrics as ``task/metric``.

    Raises:
        UserError: if no run has a metric that was asked for.
    """
    names = list(dict.fromkeys(name for section in sections for name in _metrics(section)))
    for metric in asked:
        if metric not in names:
            raise UserError(
                f"--metric {metric}: no run here has it;"
                f" {did_you_mean(metric, names) if names else 'none was evaluated after pruning'}"
            )
    return [table for section in sections for table in _tables_of(section, asked or _headlines(section))]


def other_tables(section: Section, shown: Sequence[MetricTable]) -> list[MetricTable]:
    """The tables of a section's metrics, without counts and without those that are shown already."""
    names = {table.name for table in shown}
    others = (name for name in dict.fromkeys(_metrics(section)) if name not in names)
    return _tables_of(section, [name for name in others if not _is_count(section, name)])


class Best(NamedTuple):
    """The methods with the best mean at a sparsity; several if they have the same.

    Attributes:
        sparsity: the target.
        methods: their names.
        mean: the mean over seeds.
        others: number of methods with another mean.
    """

    sparsity: float
    methods: tuple[str, ...]
    mean: float
    others: int


def best(table: MetricTable) -> Iterator[Best]:
    """The best methods at each sparsity at which any has a finite mean."""
    for sparsity in table.sparsities:
        means = [
            (mean, method.label)
            for method, row in table.cells.items()
            if sparsity in row and math.isfinite(mean := statistics(pruned(row[sparsity]))[0])
        ]
        if means:
            highest = (min if table.smaller_is_better else max)(mean for mean, _ in means)
            methods = tuple(label for mean, label in means if mean == highest)
            yield Best(sparsity, methods, highest, len(means) - len(methods))


def _metrics(section: Section) -> list[str]:
    return [
        f"{task}/{metric}"
        for run in section.runs
        for task, values in run.metrics.items()
        for metric in values
    ]


def _is_count(section: Section, name: str) -> bool:
    task, _, metric = name.partition("/")
    values = [run.metrics[task][metric] for run in section.runs if metric in run.metrics.get(task, {})]
    return metric == "tasks" or is_count(metric, *values)


def _higher_is_better(metric: str, told: Mapping[str, bool]) -> bool | None:
    """What a harness's tasks tell of a metric: that task, or else all tasks with such a metric alike.

    Args:
        metric: ``task/metric`` in the harness, perhaps with the name of a filter behind a comma; the task may
            be a group, or the mean of several.
        told: {task/metric: whether a higher value is better}.

    Returns:
        None if they tell nothing, or not the same.
    """
    plain = metric.partition(",")[0]
    for name in (plain, plain.removesuffix(CHANGE)):
        if name in told:
            return told[name]
        alike = {higher for one, higher in told.items() if one.partition("/")[2] == name.partition("/")[2]}
        if len(alike) == 1:
            return alike.pop()
    return None


def _headlines(section: Section) -> list[str]:
    """Each task's first metric; all of them if runs of a task begin with different ones."""
    measured = [(task, first_metric(values)) for run in section.runs for task, values in run.metrics.items()]
    names = dict.fromkeys(f"{task}/{metric}" for task, metric in measured if metric is not None)
    return sorted(names, key=lambda name: section.tasks.index(name.split("/", 1)[0]))


def _tables_of(section: Section, names: Sequence[str]) -> list[MetricTable]:
    """The tables of metrics, given as ``task/metric``, that a section has."""
    split = [name.split("/", 1) for name in names]
    return [
        MetricTable(section, task, metric, cells)
        for task, metric in split
        if (cells := _cells(section, task, metric))
    ]


def _cells(section: Section, task: str, metric: str) -> Cells:
    cells: Cells = {}
    for method, runs in section.by_method.items():
        row: dict[float, Cell] = {}
        for run in sorted(runs, key=lambda run: (run.sparsity, run.seed)):
            figures = (run.metrics, run.result.metrics.get("dense", {}))
            after, before = (figure.get(task, {}).get(metric) for figure in figures)
            if after is not None:
                row.setdefault(run.sparsity, {})[run.seed] = Measured(after, before, run.realised)
        if row:
            cells[method] = row
    return cells
