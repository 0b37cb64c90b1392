"""Keys of the products that runs share: each names all that could change the value, and nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import Field, fields, is_dataclass
from typing import Any

import torch
import transformers

from ecoflap.blocks.statistics import Statistic
from ecoflap.models.core.prunable import PrunableModel
from ecoflap.run.plan import Plan
from ecoflap.run.state import RunState
from ecoflap.score.protocol import Scorer
from ecoflap.storage.cache.entries import key_hash


def dense_metrics_key(plan: Plan, state: RunState, task: str) -> dict[str, Any]:
    """The key of the dense model's metrics on a task."""
    return {
        "version": 3,
        **computed_by(plan, f"task {task}"),
        "model": state.fingerprint,
        "class": _name_of(plan.tasks[task]),
        "task": state.tasks[task],
    }


def scores_key(plan: Plan, model: PrunableModel, state: RunState) -> dict[str, Any]:
    """The key of the layers' scores."""
    assert plan.scorer is not None
    return {
        **_measured(plan, ("score",), model, state, plan.scorer.samples),
        "class": _name_of(plan.scorer),
        "score": {**plan.scorer.identity(), **_options_beside_identity(plan.scorer)},
        "seed": plan.config.seed,
    }


def allocate_key(
    plan: Plan, model: PrunableModel, state: RunState, name: Mapping[str, Any], dense: bool
) -> dict[str, Any]:
    """The key of an intermediate result of the allocation; it does not hold the target.

    Args:
        plan: the plan of the run.
        model: the dense model.
        state: holds the calibration set, if one was drawn.
        name: what the allocator calls the result.
        dense: whether it is measured of the dense model without the pruner.
    """
    measuring = ("allocation", "blocks") if dense else ("allocation", "pruner", "blocks")
    return {
        **_measured(plan, measuring, model, state),
        "allocation": plan.config.allocation,
        "pruner": None if dense else plan.config.pruner,
        "batch_size": plan.config.batch_size,
        "tokens": plan.config.tokens,
        "seed": plan.config.seed,
        "name": dict(name),
    }


def statistics_key(
    plan: Plan, statistic: type[Statistic], model: PrunableModel, state: RunState
) -> dict[str, Any]:
    """The key of a statistic of the layers' inputs in the dense model."""
    return {
        **_measured(plan, ("blocks", "statistic"), model, state),
        "statistic": _name_of(statistic),
        "batch_size": plan.config.batch_size,
        "tokens": plan.config.tokens,
    }


def blocks_key(plan: Plan, model: PrunableModel, state: RunState) -> str:
    """The key of the pruned blocks from which a stopped run resumes."""
    depends = {
        **computed_by(plan, "pruner", "blocks"),
        "model": state.fingerprint,
        "loss": model.loss_identity(plan.config.model.get("loss")),
        "calibration": None if state.calibration is None else state.calibration.fingerprint(),
        "pruner": plan.config.pruner,
        "keep": None if state.allocation is None else state.allocation.keep,
        "rows": None if state.allocation is None else state.allocation.rows,
        "row_weights": None if state.allocation is None else state.allocation.row_weights,
        "batch_size": plan.config.batch_size,
        "propagate": plan.config.propagate,
        "tokens": plan.config.tokens,
    }
    return key_hash(depends)


def computed_by(plan: Plan, *parts: str) -> dict[str, Any]:
    """The code of some parts and of the model's family, and the versions of torch and transformers."""
    return {
        "code": [plan.code[part] for part in (*parts, "model")],
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def _name_of(part: object) -> str:
    """The dotted name of a class, or of a part's: two of one module may be alike in everything else."""
    kind = part if isinstance(part, type) else type(part)
    return f"{kind.__module__}.{kind.__qualname__}"


def _options_beside_identity(scorer: Scorer) -> dict[str, Any]:
    """Options that a subclass has added to a scorer without naming them in an ``identity`` of its own."""
    owner = next(kind for kind in type(scorer).__mro__ if "identity" in vars(kind))
    known = {entry.name for entry in fields(owner)} if is_dataclass(owner) else set()
    own: tuple[Field[Any], ...] = fields(scorer) if is_dataclass(scorer) else ()
    return {entry.name: getattr(scorer, entry.name) for entry in own if entry.name not in known}


def _measured(
    plan: Plan, parts: tuple[str, ...], model: PrunableModel, state: RunState, samples: int | None = None
) -> dict[str, Any]:
    """What measurements of the layers depend on: code, dense model, loss, layers and samples.

    Args:
        plan: the plan of the run.
        parts: the parts that measure, by the names of their code.
        model: the dense model.
        state: holds the calibration set, unless only weights are measured.
        samples: how many samples are used, from the first; None for all.
    """
    calibration = state.calibration
    if calibration is not None and samples is not None:
        calibration = calibration.take(samples)
    return {
        **computed_by(plan, *parts),
        "model": state.fingerprint,
        "loss": model.loss_identity(plan.config.model.get("loss")),
        "layers": [layer.name for layer in model.layers],
        "calibration": None if calibration is None else calibration.fingerprint(),
    }
