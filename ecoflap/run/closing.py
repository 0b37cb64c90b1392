"""What a run shows at its end: figures, places and next commands in its log, and tables in a tracker."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import astuple, fields
from pathlib import Path

from ecoflap.allocate.allocation import Allocation
from ecoflap.console.pace import seconds_in_words
from ecoflap.console.tracking import Tracker
from ecoflap.prune.report import BlockReport
from ecoflap.run.invocation import sweep_name
from ecoflap.run.state import RunState
from ecoflap.storage.file_names import RESULT
from ecoflap.storage.files import typed
from ecoflap.storage.results import Result
from ecoflap.storage.results.metrics import NORMAL, first_metric

log = logging.getLogger(__name__)


def show_closing(result: Result, folder: Path) -> None:
    """Log the closing lines of a finished run."""
    for line in closing(result, folder):
        log.info("%s", line)


def closing(result: Result, folder: Path) -> Iterator[str]:
    """The lines.

    Args:
        result: the record of the run.
        folder: the folder of the run.
    """
    seconds = sum(float(step["seconds"]) for step in result.steps.values())
    peak = max((int(step["peak_memory_bytes"]) for step in result.steps.values()), default=0)
    yield f"done in {seconds_in_words(seconds)}, with {peak / 2**30:.2f} GiB at most"
    tasks = next(iter(result.metrics.values()), {})
    figures = [line for task in tasks if (line := _figures(result, task)) is not None]
    yield from figures
    if any("±" in line for line in figures):
        yield "  (±: 95 % intervals over the items of a task)"
    prunable, whole = result.sparsity.get("prunable"), result.sparsity.get("model")
    if result.is_structured:
        yield f"  whole units were removed; {result.model['parameters']:,} parameters remain"
    elif prunable is not None and whole is not None:
        yield f"  sparsity: {100 * prunable:.2f} % of the prunable weights, {100 * whole:.2f} % of all"
    yield from _places(result, folder)


def _places(result: Result, folder: Path) -> Iterator[str]:
    """What the folder holds, and which commands read it."""
    yield f"  folder: {typed(folder)}"
    if result.checkpoint is not None:
        files = (folder / result.checkpoint).rglob("*")
        size = sum(file.stat().st_size for file in files if file.is_file())
        yield f"  it holds {RESULT} and {result.checkpoint}/ ({size / 2**20:,.1f} MiB)"
        following = "ecoflap verify, ecoflap bench or ecoflap report, with this folder"
    else:
        kept = "; model.save=true keeps the weights too" if "pruned" in result.metrics else ""
        yield f"  it holds {RESULT}{kept}"
        following = "ecoflap report, with this folder"
    if sweep_name() is None:
        yield f"  next: {following}"


def _figures(result: Result, task: str) -> str | None:
    """The first metric of a task in each state of the model; None if there are only counts."""
    by_state = {when: tasks[task] for when, tasks in result.metrics.items() if task in tasks}
    metric = first_metric(next(iter(by_state.values())))
    if metric is None:
        return None
    errors = result.standard_errors or {}
    halves = {when: NORMAL * errors.get(when, {}).get(task, {}).get(metric, 0.0) for when in by_state}
    figures = [
        f"{when} {values[metric]:.2f}" + (f" ± {halves[when]:.2f}" if halves[when] else "")
        for when, values in by_state.items()
    ]
    return f"  {task} {metric}: {', '.join(figures)}"


def show_in_tracker(tracker: Tracker, result: Result, state: RunState) -> None:
    """Log one table per step that has run, and the metrics and sparsity of the run as its summary."""
    if (scores := state.scores) is not None:
        scored = [(name, value, scores.standard_error.get(name)) for name, value in scores.importance.items()]
        tracker.log_table("score", [scores.granularity, scores.kind, "standard_error"], scored)
    if (allocation := state.allocation) is not None:
        sizes = allocation.sizes
        kept = [(name, sizes[name], keep, 1 - keep / sizes[name]) for name, keep in allocation.keep.items()]
        tracker.log_table("allocate", ["layer", "size", "keep", "sparsity"], kept)
        tracker.log_image("allocation", lambda: _draw_allocation(result, allocation))
    if state.report is not None:
        columns = [entry.name for entry in fields(BlockReport)]
        tracker.log_table("prune", columns, [astuple(block) for block in state.report.blocks])
    for when, by_task in result.metrics.items():
        measured = [
            (task, metric, value) for task, values in by_task.items() for metric, value in values.items()
        ]
        tracker.log_table(f"evaluate_{when}", ["task", "metric", "value"], measured)
    columns = ["seconds", "peak_memory_bytes", "cached"]
    costs = [(step, *(cost[column] for column in columns)) for step, cost in result.steps.items()]
    tracker.log_table("cost", ["step", *columns], costs)
    sparsity = {name: value for name, value in result.sparsity.items() if name != "layers"}
    headline = {} if (value := result.headline()) is None else {"headline": value}
    seconds = {step: cost["seconds"] for step, cost in result.steps.items()}
    figures = {"metrics": result.metrics, "standard_errors": result.standard_errors or {}}
    tracker.summary({**headline, **figures, "sparsity": sparsity, "seconds": seconds, "model": result.model})


def _draw_allocation(result: Result, allocation: Allocation) -> bytes:
    # The plotting library takes a second to import.
    from ecoflap.sweeps.report.allocation_plot import allocation_png

    return allocation_png(result.model["name"], result.sparsity["layers"], allocation.keep, allocation.target)
