"""The sections of a report: the runs of one model on the same tasks and data, each with its method."""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ecoflap.sweeps.report.evaluated import name_data
from ecoflap.sweeps.report.methods import Method, name_methods
from ecoflap.sweeps.report.model_names import name_models
from ecoflap.sweeps.report.runs import Run

FEW = 3  # lines on runs of one section that are not shown


@dataclass(frozen=True)
class Section:
    """The runs that share their charts.

    Attributes:
        model: the model's name, with what tells its weights and its test data from others.
        tasks: the tasks that the pruned model was evaluated on; empty if the runs stopped before.
        runs: its runs, oldest first, all different.
        methods: the method of each run.
    """

    model: str
    tasks: tuple[str, ...]
    runs: list[Run]
    methods: list[Method]

    @property
    def title(self) -> str:
        """The model and the tasks; ``mean`` is the mean of the tasks, not another one."""
        tasks = [task for task in self.tasks if task != "mean" or len(self.tasks) == 1]
        if not tasks:
            return f"{self.model}, not evaluated"
        return f"{self.model} on {', '.join(tasks) if len(tasks) < 4 else f'{len(tasks)} tasks'}"

    @property
    def by_method(self) -> dict[Method, list[Run]]:
        """The runs of each method, in the order of every chart and table."""
        found = defaultdict(list)
        for method, run in zip(self.methods, self.runs, strict=True):
            found[method].append(run)
        return {method: found[method] for method in sorted(found, key=lambda method: method.order)}


def make_sections(runs: Sequence[Run]) -> list[Section]:
    """Group runs by model, tasks and the data of these, in alphabetical order."""
    found = defaultdict(list)
    for model, run in zip(name_data(runs, name_models(runs)), runs, strict=True):
        found[model, tuple(run.metrics)].append(run)
    sections = [
        Section(model, tasks, members, name_methods(members)) for (model, tasks), members in found.items()
    ]
    shown = sorted(map(_newest, sections), key=lambda section: (section.model, section.tasks))
    for section in shown:
        _tell_equal_seeds(section)
    return shown


def _newest(section: Section) -> Section:
    """Of two runs that agree in method, sparsity and seed, keep the newer one and report so on stderr."""
    kept: dict[tuple[Method, float, int], Run] = {}
    replaced = []
    for method, run in zip(section.methods, section.runs, strict=True):
        key = (method, run.sparsity, run.seed)
        if (older := kept.pop(key, None)) is not None:
            replaced.append(
                f"{method.label}, at sparsity {run.sparsity:g}: {older.name} and {run.name} both have seed"
                f" {run.seed}; only {run.name}, the newer one, is shown"
            )
        kept[key] = run
    for line in replaced[:FEW]:
        print(f"{section.title}, {line}", file=sys.stderr)
    if (more := len(replaced) - FEW) > 0:
        print(f"{section.title}: {more} more runs are not shown, as there are newer ones", file=sys.stderr)
    return Section(section.model, section.tasks, list(kept.values()), [method for method, *_ in kept])


def _tell_equal_seeds(section: Section) -> None:
    """Report on stderr where seeds draw nothing, so that their runs are one measurement."""
    found: dict[tuple[Method, float], list[Run]] = defaultdict(list)
    for method, run in zip(section.methods, section.runs, strict=True):
        if run.metrics:
            found[method, run.sparsity].append(run)
    for (method, sparsity), (first, *others) in found.items():
        if others and all(_measured(one) == _measured(first) for one in others):
            where = f"{section.title}, {method.label}, at sparsity {sparsity:g}"
            seeds = ", ".join(str(run.seed) for run in (first, *others))
            print(
                f"{where}: seeds {seeds} have the same counts and figures, from the same samples or none;"
                " they are one measurement, as nothing is drawn there",
                file=sys.stderr,
            )


def _measured(run: Run) -> tuple[Any, ...]:
    """What a run measured, on which calibration samples, and how many weights its layers keep."""
    kept = {name: layer["kept"] for name, layer in run.result.sparsity.get("layers", {}).items()}
    return run.metrics, run.samples, kept
