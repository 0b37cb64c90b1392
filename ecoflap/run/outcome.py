"""The outcome of a run: verify the realised sparsity, save the checkpoint, write the result, and track it."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Sequence
from dataclasses import astuple, fields
from typing import Any

from ecoflap.allocate.allocation import Allocation
from ecoflap.console.tracking import Tracker
from ecoflap.data.calibration_set import CalibrationSet
from ecoflap.distributed.processes import is_first
from ecoflap.errors import NumericalError
from ecoflap.models.core.layers import Layer
from ecoflap.models.core.prunable import PrunableModel
from ecoflap.models.offload.placement import WORK
from ecoflap.prune.report import BlockReport, PruneReport
from ecoflap.run.plan import Plan
from ecoflap.run.state import RunState
from ecoflap.storage.bitmask.forms import form_of
from ecoflap.storage.checkpoint import save_checkpoint
from ecoflap.storage.file_names import BLOCKS, RESULT
from ecoflap.storage.results import LayerCount, Result, environment, sparsity_section
from ecoflap.storage.saved_model import usual_dtype
from ecoflap.storage.sharing.describe import describe

log = logging.getLogger(__name__)

NOTABLE = 0.001  # share of the weights


def conclude(plan: Plan, model: PrunableModel, state: RunState) -> Result:
    """Verify the realised sparsity, save the checkpoint if requested, and write ``result.json`` last."""
    counts = count_layers(model, state.report)
    form, report, saved = form_of(plan.loader.save), state.report, None
    if form is not None and report is not None and is_first():
        saved = save_checkpoint(model, report.masks, plan.folder, form)
    shutil.rmtree(plan.folder / WORK, ignore_errors=True)
    surroundings = environment()
    result = Result(
        config=plan.record,
        versions=surroundings["versions"],
        git=surroundings["git"],
        model=describe_model(model, state.fingerprint),
        data=_data(state),
        metrics=state.metrics,
        standard_errors=state.standard_errors,
        sparsity=_sparsity(plan, state, counts, model.parameter_count()),
        steps=state.costs,
        checkpoint=saved,
        scores=None if state.scores is None else state.scores.to_json(),
        allocation=describe_allocation(state.allocation),
    )
    if saved is not None:
        describe(plan.folder / saved, result)
    result.write(plan.folder / RESULT)
    shutil.rmtree(plan.folder / BLOCKS, ignore_errors=True)
    return result


def describe_model(model: PrunableModel, fingerprint: str) -> dict[str, Any]:
    """Describe a model in the words of ``result.json``; ``fingerprint`` is of its dense weights."""
    return {
        "name": model.name,
        "fingerprint": fingerprint,
        "dtype": usual_dtype(model.module.parameters()),
        "parameters": model.parameter_count(),
        "prunable": sum(layer.size for layer in model.layers),
        "block_weights": model.block_weights(),
    }


def describe_calibration(calibration: CalibrationSet) -> dict[str, Any]:
    """Describe a calibration set in the words of ``result.json``."""
    return {
        "name": calibration.name,
        "samples": len(calibration),
        "fingerprint": calibration.fingerprint(),
    }


def describe_allocation(allocation: Allocation | None) -> dict[str, Any] | None:
    """Describe an allocation in the words of ``result.json``, beside the counts of its layers."""
    if allocation is None:
        return None
    return {"granularity": allocation.granularity, "details": allocation.details}


def describe_experts(report: PruneReport | None) -> dict[str, Any]:
    """Describe, in the words of ``result.json``, how many tokens reached each expert; {} without any."""
    if report is None or not report.tokens:
        return {}
    unseen = sum(not tokens for tokens in report.tokens.values())
    return {"experts": {"layers": len(report.tokens), "unseen": unseen, "tokens": report.tokens}}


def count_layers(model: PrunableModel, report: PruneReport | None) -> dict[str, LayerCount]:
    """Count the zeros and the kept weights of every layer, and warn where many kept weights are zero.

    Raises:
        NumericalError: if a removed weight is not zero.
    """
    counts: dict[str, LayerCount] = {}
    for tower in model.towers:
        for block in tower.blocks:
            with model.placement.using(block):
                counts |= {layer.name: _count(tower.name, layer, report) for layer in block.layers}
    if report is not None:
        _warn_of_kept_zeros(list(counts.values()))
    return counts


def _warn_of_kept_zeros(counts: Sequence[LayerCount]) -> None:
    """Warn if the model had zeros beside those that the masks remove, as one that is pruned already has."""
    size = sum(count.size for count in counts)
    zeros, removed = sum(count.zeros for count in counts), sum(count.size - count.kept for count in counts)
    if zeros - removed > NOTABLE * size:
        log.warning(
            "%.4f of the prunable weights were to go, and %.4f are zero: the model had zeros before, of which"
            " the masks keep some; prune the dense model to have the sparsity that was asked for",
            removed / size,
            zeros / size,
        )


def _count(tower: str, layer: Layer, report: PruneReport | None) -> LayerCount:
    zeros, kept, error = int((layer.weight == 0).sum()), layer.size, None
    if report is not None and layer.name in report.masks:
        mask = report.masks[layer.name].to(layer.weight.device)
        kept, error = int(mask.sum()), report.errors[layer.name]
        if bool((layer.weight[~mask] != 0).any()):
            raise NumericalError(
                f"{layer.name}: weights that the mask removes are not zero; nothing was saved"
            )
    return LayerCount(tower, layer.size, kept, zeros, error)


def _sparsity(plan: Plan, state: RunState, counts: dict[str, LayerCount], parameters: int) -> dict[str, Any]:
    """The requested and the realised sparsity, and which part decided what each layer keeps."""
    if (allocation := state.allocation) is None:
        return sparsity_section(counts, None, parameters)
    allocated_by, coarse = ("pruner", None) if plan.pruner.allocates else ("allocation", plan.coarse)
    return sparsity_section(counts, allocation.target, parameters, allocation.total, allocated_by, coarse)


def _data(state: RunState) -> dict[str, Any]:
    data: dict[str, Any] = {}
    if state.calibration is not None:
        data["calibration"] = describe_calibration(state.calibration)
    if state.training is not None:
        data["finetune"] = state.training.data
    if state.tasks:
        data["tasks"] = state.tasks
    return data | describe_experts(state.report)


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
