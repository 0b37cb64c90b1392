"""The steps that leave the weights unchanged: score, allocate, evaluate."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from ecoflap.allocate.allocation import Allocation
from ecoflap.allocate.protocol import Allocator, Context, check_scores, checked_allocation
from ecoflap.api.given import as_config, requested_sparsity, require, require_same_given
from ecoflap.api.parts import named, part, refuse_options
from ecoflap.api.readable import check_given
from ecoflap.api.result import PruneResult
from ecoflap.api.unchanged import default_cpu, unchanged
from ecoflap.blocks.choices import TOKENS
from ecoflap.data.calibration_set import CalibrationSet
from ecoflap.errors import UserError, require_choice, require_count, require_seed
from ecoflap.evaluate.protocol import Task, checked_evaluation
from ecoflap.models.core.prunable import PrunableModel
from ecoflap.models.core.text_length import window_tokens
from ecoflap.prune.protocol import Pruner
from ecoflap.run.config import RunConfig
from ecoflap.run.plan.automatic import AUTO, ZEROTH_ORDER, allocation_of
from ecoflap.run.plan.building import build_tasks
from ecoflap.score.protocol import Scorer, checked_scores
from ecoflap.score.scores import Scores

Measure = Callable[[nn.Module], float | Mapping[str, float]]


def score(
    model: PrunableModel,
    data: CalibrationSet,
    method: str | Scorer | None = None,
    *,
    seed: int = RunConfig.seed,
    **options: Any,
) -> Scores:
    """Score how important each layer is for the model's loss.

    Args:
        model: from ``ecoflap.load``.
        data: from ``ecoflap.calibrate``.
        method: ``"zeroth_order"`` (random probes, the default), ``"first_order"`` (gradients) or ``"local"``
            (a pruner's own metric); or a scorer such as ``ecoflap.ZerothOrder(noises=4)``.
        seed: seed of the probes.
        options: options of a named method, such as ``noises=4``.

    Raises:
        UserError: if there is no such method or option, the loss depends on none of the layers, or processes
            of one run give different models or data.
        NumericalError: if a loss or a score is not finite.
    """
    require(model, PrunableModel, "ecoflap.load")
    require(data, CalibrationSet, "ecoflap.calibrate")
    check_given(model, data)
    require_same_given(model, data)
    seed = require_seed(seed)
    chosen = ZEROTH_ORDER if method in (None, AUTO) else method
    scorer: Scorer | None = part("score", chosen, options)
    if scorer is None:
        raise UserError(
            f"score={chosen} measures nothing; leave the step out: ecoflap.allocate(model, None, ...)"
        )
    with unchanged(model.module), default_cpu():
        model.reopen()
        return checked_scores(scorer, model, data, seed)


def allocate(
    model: PrunableModel,
    scores: Scores | None = None,
    *,
    sparsity: float,
    method: str | Allocator | None = None,
    data: CalibrationSet | None = None,
    pruner: str | Pruner | None = None,
    batch_size: int = RunConfig.batch_size,
    tokens: str = RunConfig.tokens,
    seed: int = RunConfig.seed,
    **options: Any,
) -> Allocation:
    """Decide how many weights each layer keeps.

    Args:
        model: from ``ecoflap.load``.
        scores: from ``ecoflap.score``, for a method that uses them.
        sparsity: share of the prunable weights to remove, in [0, 1).
        method: ``"water_filling"``, which shares the budget in proportion to the scores, or evenly without
            them; ``"in_context"`` or another that uses no scores, such as ``"owl"``; ``"file"``; or an
            allocator such as ``ecoflap.WaterFilling(granularity="layer")``. The default, None, is
            ``"in_context"`` with data and without scores, if layers can have different sparsities, else
            ``"water_filling"``.
        data: from ``ecoflap.calibrate``, for a method that runs samples through the model.
        pruner: the pruner to allocate for, as in ``ecoflap.prune``, for such a method. ``"in_context"`` gives
            rows counts or weights for it, which a pruner with another mask refuses.
        batch_size: as in ``ecoflap.prune``.
        tokens: as in ``ecoflap.prune``.
        seed: seed of all random draws.
        options: options of a named method, such as ``granularity="layer"`` or ``cap=0.8``.

    Raises:
        UserError: if there is no such method or option, data is missing, no allocation has this sparsity, or
            processes of one run give different models or data.
    """
    require(model, PrunableModel, "ecoflap.load")
    if scores is not None:
        require(scores, Scores, "ecoflap.score")
    chosen_pruner: Pruner = part("pruner", pruner, {})
    if chosen_pruner.allocates:
        raise UserError(f"pruner={chosen_pruner.name} decides by itself what each layer keeps")
    if method is None or method == AUTO:
        method = allocation_of(chosen_pruner, scores is None, calibrated=data is not None)
    allocator: Allocator = part("allocation", method, options)
    target = requested_sparsity(sparsity)
    allocator.check(target)
    check_scores(allocator, scores)
    if data is not None:
        require(data, CalibrationSet, "ecoflap.calibrate")
        check_given(model, data)
        require_same_given(model, data)
    elif allocator.requires.calibration:
        raise UserError(
            f"allocation={allocator.name} runs samples through the model; give data=ecoflap.calibrate(...)"
        )
    allocator.check_pruner(chosen_pruner)
    chosen_pruner.check_layers(model.layers)
    batch_size = require_count("batch_size", batch_size)
    require_choice("tokens", tokens, TOKENS)
    seed = require_seed(seed)
    context = Context(chosen_pruner, data, batch_size, seed, tokens)
    with unchanged(model.module), default_cpu():
        model.reopen()
        return checked_allocation(allocator, model, scores, target, context)


def evaluate(
    model: PrunableModel | PruneResult, task: str | Task | Measure, **options: Any
) -> dict[str, float]:
    """Evaluate a model on a task.

    Args:
        model: the result of ``ecoflap.load`` or ``ecoflap.prune``.
        task: the name of a task, as for ``task=`` on the command line: ``"wikitext2"``, ``"easy_vqa"``,
            ``"imagenet"``, ...; a task object; or a function of the transformers model that returns a
            number, or several by name. Perplexity is measured on windows of 2,048 tokens, or of as many as
            the model reads if these are fewer, unless ``sequence_length`` is given.
        options: options of a named task, such as ``path="test.txt"`` or ``limit=100``.

    Returns:
        {metric: value}; for a suite, {task/metric: value}.

    Raises:
        UserError: if there is no such task or option, its data are missing, it needs another model, or a
            function returns no numbers, or a task of your own changes weights.
    """
    loaded = model.prunable if isinstance(model, PruneResult) else model
    require(loaded, PrunableModel, "ecoflap.load or ecoflap.prune")
    with unchanged(loaded.module, loaded.processor), torch.no_grad():
        if isinstance(task, str):
            tasks = _tasks(loaded, task, options)
            with default_cpu():
                found = {
                    name: checked_evaluation(name, one.load(loaded), loaded) for name, one in tasks.items()
                }
            return next(iter(found.values())) if len(found) == 1 else _joined(found)
        refuse_options("task", task, options)
        if hasattr(task, "load"):
            with default_cpu():
                name = getattr(task, "name", type(task).__name__)
                return checked_evaluation(name, task.load(loaded), loaded)
        loaded.module.eval()
        value = task(loaded.module)
    name = getattr(task, "__name__", type(task).__name__)
    return {
        metric: _number(metric, one)
        for metric, one in (value.items() if isinstance(value, Mapping) else [(name, value)])
    }


def _number(metric: str, value: Any) -> float:
    """A metric that a user's function returned.

    Raises:
        UserError: if it is not a number.
    """
    try:
        return float(value)
    except (TypeError, ValueError, RuntimeError):
        raise UserError(
            f"{metric} is a {type(value).__name__}; let the function return a number, or several by name"
        ) from None


def _tasks(model: PrunableModel, name: str, options: Mapping[str, Any]) -> dict[str, Task]:
    """{name: task} of a named task, or of a suite.

    Raises:
        UserError: if there is no such task or option.
    """
    node = named("task", name)
    if "sequence_length" in node:
        node["sequence_length"] = window_tokens(model, node["sequence_length"])
    return build_tasks(as_config("task", {**node, **options}))


def _joined(found: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    return {f"{name}/{metric}": value for name, values in found.items() for metric, value in values.items()}
