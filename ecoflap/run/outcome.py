"""The outcome of a run: verify the realised sparsity, save the checkpoint, write the result, and track it."""

from __future__ import annotations

import shutil
from dataclasses import astuple, fields, replace

from ecoflap.allocate.allocation import Allocation
from ecoflap.console.tracking import Tracker
from ecoflap.distributed.processes import is_first
from ecoflap.models.core.prunable import PrunableModel
from ecoflap.models.offload.placement import WORK
from ecoflap.prune.report import BlockReport
from ecoflap.run.plan import Plan
from ecoflap.run.record import make_record
from ecoflap.run.state import RunState
from ecoflap.storage.bitmask.forms import form_of
from ecoflap.storage.checkpoint import save_checkpoint
from ecoflap.storage.file_names import BLOCKS, RESULT
from ecoflap.storage.results import Result
from ecoflap.storage.sharing.describe import describe


def conclude(plan: Plan, model: PrunableModel, state: RunState) -> Result:
    """Verify the realised sparsity, save the checkpoint if requested, and write ``result.json`` last."""
    record = make_record(model, state, plan.record, plan.pruner, plan.coarse)
    form, report, saved = form_of(plan.loader.save), state.report, None
    if form is not None and report is not None and is_first():
        saved = save_checkpoint(model, report.masks, plan.folder, form)
    shutil.rmtree(plan.folder / WORK, ignore_errors=True)
    result = replace(record, standard_errors=state.standard_errors, checkpoint=saved, sources=plan.sources)
    if saved is not None:
        describe(plan.folder / saved, result)
    result.write(plan.folder / RESULT)
    shutil.rmtree(plan.folder / BLOCKS, ignore_errors=True)
    return result


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
    tracker.summary({**headline, "metrics": result.metrics, "sparsity": sparsity, "model": result.model})


def _draw_allocation(result: Result, allocation: Allocation) -> bytes:
    # The plotting library takes a second to import.
    from ecoflap.sweeps.report.allocation_plot import allocation_png

    return allocation_png(result.model["name"], result.sparsity["layers"], allocation.keep, allocation.target)
