"""Prune a model in one call, or with the results of earlier steps."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from ecoflap.allocate.allocation import EXACT, GROUPS, Allocation, check_counts, check_total
from ecoflap.allocate.protocol import Allocator, check_scores
from ecoflap.api.given import requested_sparsity
from ecoflap.api.loading import load
from ecoflap.api.method import Method, choose_method
from ecoflap.api.parts import named
from ecoflap.api.pruning_call import PruningCall
from ecoflap.api.result import PruneResult
from ecoflap.api.unchanged import default_cpu, unchanged
from ecoflap.blocks.choices import PROPAGATE, TOKENS
from ecoflap.errors import UserError, require_choice, require_count, require_seed
from ecoflap.models.core.prunable import PrunableModel
from ecoflap.prune.inputs import check_propagate, check_tokens, reads_inputs
from ecoflap.prune.protocol import Pruner
from ecoflap.run.config import RunConfig
from ecoflap.run.plan.automatic import AUTO, propagate_of
from ecoflap.score.protocol import Scorer
from ecoflap.score.scores import Scores

log = logging.getLogger(__name__)


def prune(
    model: nn.Module | PrunableModel,
    processor: Any = None,
    data: Any = None,
    *,
    sparsity: float | None = None,
    pruner: str | Pruner | None = None,
    score: str | Scorer | Scores | None = None,
    allocation: str | Allocator | Allocation | None = None,
    seed: int = RunConfig.seed,
    batch_size: int = RunConfig.batch_size,
    propagate: str = RunConfig.propagate,
    tokens: str = RunConfig.tokens,
    **options: Any,
) -> PruneResult:
    """Prune a model in place; first load, calibrate, score and allocate where the results are not given.

    All steps in one call: ``ecoflap.prune(model, tokenizer, data=texts, sparsity=0.6)``. Only the last
    step: ``ecoflap.prune(model, data=data, allocation=allocation)``.

    Args:
        model: a transformers model in memory, or the result of ``ecoflap.load``.
        processor: the tokenizer or processor of a transformers model.
        data: anything that ``ecoflap.calibrate`` takes, or its result; None for a method that uses no data.
        sparsity: share of the prunable weights to remove, in [0, 1); None for that of a given allocation.
        pruner: ``"wanda"`` (the default), ``"ria"``, ``"magnitude"``, ``"sparsegpt"``, ``"admm"``,
            ``"global_magnitude"``, ``"global_gradient"`` or ``"reap"``; or an object such as
            ``ecoflap.Wanda(mask="2:4")``.
        score: a method of ``ecoflap.score``, its result, or ``"none"``. The default, None, is
            ``"zeroth_order"`` for an allocation that uses scores, and none otherwise.
        allocation: a method of ``ecoflap.allocate``, or its result. The default, None, is ``"in_context"``;
            with a score it is ``"water_filling"``, which shares the budget in proportion to the scores, or
            evenly for ``"none"``; a mask such as 2:4 fixes the same sparsity everywhere.
        seed: seed of all random draws.
        batch_size: samples per forward pass of the pruner; changes nothing beyond rounding, unless the
            samples of a batch interact inside the model.
        propagate: what comes before a layer when its inputs are measured: ``"pruned"`` blocks and its own
            block dense, everything pruned (``"layer"``), the same with weights that are first compensated
            for it (``"compensated"``), or ``"dense"`` blocks. ``"auto"`` is dense for a pruner that leaves
            kept weights unchanged with an allocation that prunes in trials, else pruned.
        tokens: which tokens count in these inputs, in towers that read text and visual tokens: ``"all"``,
            ``"text"``, ``"answer"`` (those of the answer), or ``"atv"`` (text and the visual tokens that a
            block moves most).
        options: options of a named pruner, such as ``damping=0.1``.

    Returns:
        The pruned model, its masks, and the contents of a run's ``result.json``. The model is the same
        object; only its weights change.

    Raises:
        UserError: if a request can't be met.
        NumericalError: if a NaN or an infinity appears.
    """
    _check_model(model)
    module = model.module if isinstance(model, PrunableModel) else model
    own = processor if processor is not None else getattr(model, "processor", None)
    with unchanged(module, own), default_cpu():
        if not isinstance(model, PrunableModel):
            model = load(model, processor)
        elif processor is not None:
            raise UserError("a processor goes with a transformers model; this one was loaded with its own")
        model.reopen()
        _check_options(pruner, options)
        method = choose_method(pruner, score, allocation, options)
        target = _target(sparsity, allocation)
        resolved = propagate_of(propagate, method.pruner, method.in_trials)
        seed, batch_size = require_seed(seed), require_count("batch_size", batch_size)
        call = PruningCall(model, method, target, seed, batch_size, resolved, tokens)
        _check(call, data)
        _warn_unread(propagate, tokens, method)
        return call.run(data)


def _check_model(model: Any) -> None:
    """Refuse anything but a model.

    Raises:
        UserError: if it is none.
    """
    if isinstance(model, PruneResult):
        raise UserError(
            "the model is a PruneResult; to prune further, give its model (result.model) with its processor,"
            " or load the dense model again"
        )
    if isinstance(model, str | Path):
        raise UserError(f"the model is the name {str(model)!r}; give ecoflap.load({str(model)!r})")
    if not isinstance(model, nn.Module | PrunableModel):
        raise UserError(
            f"the model is a {type(model).__name__}; give a transformers model, or what ecoflap.load gives"
        )


def _check_options(pruner: Any, options: Mapping[str, Any]) -> None:
    """Refuse options of the calibration set, unless the pruner has one of that name.

    Raises:
        UserError: if there is one.
    """
    own = named("pruner", pruner) if isinstance(pruner, str) else {}
    for name in ("samples", "sequence_length"):
        if name in options and name not in own:
            given = f"{name}={options[name]!r}"
            raise UserError(
                f"{given} is an option of ecoflap.calibrate; give data=ecoflap.calibrate(model, data,"
                f" {given}), with the model that ecoflap.load returns"
            )


def _target(sparsity: float | None, allocation: Any) -> float:
    """The requested sparsity, or that of an allocation.

    Raises:
        UserError: if there is none, the two differ, or it is outside [0, 1).
    """
    known = allocation.target if isinstance(allocation, Allocation) else None
    target = requested_sparsity(known if sparsity is None else sparsity)
    if known is not None and abs(target - known) > 1e-9:
        raise UserError(f"the allocation was made for sparsity={known:g}, and sparsity={target:g} was given")
    return target


def _check(call: PruningCall, data: Any) -> None:
    """Refuse a call that can't be carried out, before any work is done.

    Raises:
        UserError: if it can't be carried out.
    """
    model, method = call.model, call.method
    require_choice("propagate", call.propagate, PROPAGATE)
    check_propagate(call.propagate, method.pruner)
    require_choice("tokens", call.tokens, TOKENS)
    check_tokens(call.tokens, method.pruner)
    if data is None and method.requires_calibration:
        raise UserError(
            "data is missing: the pruner, the allocation or the scores need calibration data; pass data=,"
            ' such as a list of texts or the name of a data set ("wikitext2")'
        )
    if method.pruner.allocates:
        if method.pruner.trains:
            raise UserError(
                f"pruner={method.pruner.name} trains on a data set's whole training split; start it from the"
                " command line"
            )
        method.pruner.check_model(model, call.sparsity)
        return
    if method.allocator is not None:
        method.allocator.check(call.sparsity)
        method.allocator.check_pruner(method.pruner)
        check_scores(method.allocator, method.score)
    if method.allocation is not None:
        check_counts(method.allocation, model.layers)
        if method.allocation.total in (EXACT, GROUPS):
            towers = [tower.layers for tower in model.towers]
            check_total(method.allocation, towers, "the allocation", 'its total="as_given"')
        method.pruner.check_rows(method.allocation)
    method.pruner.check(call.sparsity, method.uneven)
    method.pruner.check_layers(model.layers)


def _warn_unread(propagate: str, tokens: str, method: Method) -> None:
    """Warn of choices about the inputs of layers that nothing reads."""
    if reads_inputs(method.pruner):
        return
    measured = method.allocator is not None and method.allocator.requires.calibration
    unread = [f"propagate={propagate}"] if propagate != AUTO else []
    unread += [f"tokens={tokens}"] if tokens != RunConfig.tokens and not measured else []
    for choice in unread:
        log.warning("%s changes nothing: pruner=%s reads no inputs of layers", choice, method.pruner.name)
