"""The record of a run or of a pruning call: the contents of ``result.json``."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from datetime import datetime, timezone
from typing import Any

from ecoflap.allocate.allocation import Allocation
from ecoflap.data.calibration_set import CalibrationSet
from ecoflap.distributed.processes import size
from ecoflap.errors import NumericalError
from ecoflap.models.core.layers import Layer
from ecoflap.models.core.prunable import PrunableModel
from ecoflap.prune.protocol import Pruner
from ecoflap.prune.report import NOTABLE, PruneReport
from ecoflap.run.state import RunState
from ecoflap.storage.results import UNCORRELATED, LayerCount, Result, sparsity_section
from ecoflap.storage.results.hardware import hardware
from ecoflap.storage.saved_model import usual_dtype

log = logging.getLogger(__name__)


def make_record(
    model: PrunableModel,
    state: RunState,
    config: dict[str, Any],
    pruner: Pruner,
    coarse: str | None,
    origin: dict[str, Any],
    sources: dict[str, Any],
    uses_calibration: bool = True,
) -> Result:
    """Make the record of a model in its final state; the realised sparsity is counted from the weights.

    Args:
        model: the model after the last step.
        state: the products of the steps.
        config: as plain dicts and lists.
        pruner: of the run or call.
        coarse: what decides the sparsities of layers beside a pruner that does not; None if unknown.
        origin: the versions and the commit, see ``environment``.
        sources: the user's own code and the files, see ``sources_of``.
        uses_calibration: whether a step looked at the calibration set, if there is one.

    Raises:
        NumericalError: if a removed weight is not zero.
    """
    counts = count_layers(model, state.report)
    return Result(
        finished=datetime.now(timezone.utc).isoformat(timespec="milliseconds"),
        config=config,
        **origin,
        model=describe_model(model, state.fingerprint),
        data=describe_data(state, uses_calibration),
        metrics=state.metrics,
        sparsity=_sparsity(counts, model.parameter_count(), state.allocation, pruner, coarse),
        steps=state.costs,
        hardware=hardware(model.device, size()),
        scores=None if state.scores is None else state.scores.to_json(),
        allocation=describe_allocation(state.allocation),
        sources=sources,
    )


def _sparsity(
    counts: dict[str, LayerCount],
    parameters: int,
    allocation: Allocation | None,
    pruner: Pruner,
    coarse: str | None,
) -> dict[str, Any]:
    """The requested and the realised sparsity, which part decided what each layer keeps, and what kind of
    errors the layers have.
    """
    if allocation is None:
        return sparsity_section(counts, None, parameters)
    allocated_by, coarse = ("pruner", None) if pruner.allocates else ("allocation", coarse)
    section = sparsity_section(counts, allocation.target, parameters, allocation.total, allocated_by, coarse)
    return section | {"errors": kind_of_errors(counts, pruner)}


def kind_of_errors(counts: dict[str, LayerCount], pruner: Pruner) -> str | None:
    """How the errors of layers are computed; None if they have none."""
    statistic = getattr(pruner, "statistic", None)
    if statistic is None or all(count.error is None for count in counts.values()):
        return None
    return "exact" if statistic.exact else UNCORRELATED


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


def describe_data(state: RunState, uses_calibration: bool) -> dict[str, Any]:
    """Describe the samples of a run in the words of ``result.json``, and how many reached each expert."""
    data: dict[str, Any] = {}
    if state.calibration is not None:
        unused = {} if uses_calibration else {"unused": True}
        data["calibration"] = describe_calibration(state.calibration) | unused
    if state.searched is not None:
        data["prune"] = {"name": state.searched.name, "samples": len(state.searched)}
    if state.training is not None:
        data["finetune"] = state.training.data
    if state.tasks:
        data["tasks"] = state.tasks
    return data | describe_experts(state.report)


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
        _warn_of_kept_zeros(list(counts.values()), sum(report.zeroed.values()))
    return counts


def _warn_of_kept_zeros(counts: Sequence[LayerCount], zeroed: int) -> None:
    """Warn if the model had zeros beside those that the masks remove, as one that is pruned already has.

    Args:
        counts: of all layers.
        zeroed: how many weights that the masks keep pruning made zero.
    """
    size = sum(count.size for count in counts)
    zeros, removed = sum(count.zeros for count in counts), sum(count.size - count.kept for count in counts)
    if zeros - removed - zeroed > NOTABLE * size:
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
