"""The inputs that blocks are pruned with: from pruned or dense predecessors, and statistics of dense ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeGuard

import torch
from torch import Tensor

from ecoflap.blocks.gram import Gram
from ecoflap.blocks.layer_calls import require_calls
from ecoflap.blocks.statistics import MeanSquare, Statistic
from ecoflap.blocks.token_choice import require_tokens
from ecoflap.blocks.walk import walk
from ecoflap.data.batch import Batch, first_samples
from ecoflap.data.calibration_set import CalibrationSet
from ecoflap.distributed.processes import size
from ecoflap.errors import UserError
from ecoflap.models.core.forward_modes import quiet_forward
from ecoflap.models.core.prunable import PrunableModel
from ecoflap.prune.protocol import LayerPruner, Pruner


def reads_inputs(pruner: Pruner) -> TypeGuard[LayerPruner]:
    """Whether a pruner measures the inputs of layers, so that ``propagate`` and ``tokens`` matter to it."""
    return not pruner.allocates and pruner.requires_calibration


def check_propagate(choice: str, pruner: Pruner) -> None:
    """Refuse a value of ``propagate`` that the pruner can't make use of.

    Raises:
        UserError: if it is ``compensated`` beside a pruner that changes no weight.
    """
    able = not pruner.allocates and pruner.corrects and pruner.statistic is Gram
    if choice == "compensated" and not able:
        raise UserError(
            f"propagate=compensated changes the weights that stay, and pruner={pruner.name} leaves them as"
            " they are; use pruner=admm or sparsegpt, pruner.repair=true (wanda, ria, magnitude), or another"
            " value of propagate"
        )


def check_tokens(choice: str, pruner: Pruner) -> None:
    """Refuse a choice of tokens beside a pruner that measures none.

    Raises:
        UserError: if nothing reads the choice.
    """
    if choice != "all" and pruner.allocates:
        raise UserError(
            f"tokens={choice}: pruner={pruner.name} measures no inputs of layers, so no tokens count; use"
            " tokens=all"
        )


def require_capture(
    model: PrunableModel,
    pruner: Pruner,
    calibration: CalibrationSet,
    batch_size: int,
    propagate: str,
    tokens: str,
) -> None:
    """Refuse layers whose inputs the pruner could not capture, before anything is scored.

    Scorers, and pruners of the whole model, check by themselves.

    Raises:
        UserError: if the calibration data do not reach a layer, the model uses its weight without calling its
            module, its blocks can't be pruned from the inputs that ``propagate`` asks for, or the tokens that
            ``tokens`` tells apart are not known.
    """
    if not reads_inputs(pruner):
        return
    batches = calibration.batches(batch_size)
    require_calls(model, batches, every_layer=True)
    require_propagation(model, batches, propagate, pruner.statistic)
    require_tokens(model, [tower for tower in model.towers if tower.layers], batches, tokens)


@torch.no_grad()
def require_propagation(
    model: PrunableModel, batches: Sequence[Batch], propagate: str, statistic: type[Statistic] | None
) -> None:
    """Refuse a model whose blocks can't be pruned from such inputs, before anything is scored or pruned.

    ``layer`` needs towers that call each layer once. ``dense`` prunes the last towers first, so that a later
    one may not feed an earlier one; a storable statistic is gathered before anything is pruned.

    Args:
        model: dense; it is run on a few samples of each batch.
        batches: of the calibration set.
        propagate: what comes before a layer when its inputs are measured.
        statistic: of a layer's inputs; None if the pruner looks at no data.

    Raises:
        UserError: if the model is refused.
    """
    dense = propagate == "dense"
    if statistic is None or propagate == "pruned" or (dense and statistic.storable):
        return
    few = max(2, size())  # each process needs a sample
    small = [first_samples(batch, few) for batch in batches]
    towers = tuple(reversed(model.towers)) if dense else model.towers
    with quiet_forward(model.module):
        for visit in walk(model, towers, small, "check", dense):
            if not dense and visit.block.layers:
                visit.require_one_call()
            visit.leave()


@torch.no_grad()
def measure_dense(
    model: PrunableModel,
    calibration: CalibrationSet,
    batch_size: int,
    statistic: type[Statistic] = MeanSquare,
    tokens: str = "all",
) -> dict[str, Tensor]:
    """Gather a storable statistic of all layers' inputs in the dense model, in one pass over the data.

    Args:
        model: dense; ``require_calls`` accepts it.
        calibration: the samples.
        batch_size: samples per forward pass; changes nothing beyond rounding, unless a loss takes negatives
            from the batch.
        statistic: the statistic to gather.
        tokens: which tokens count, see ``ecoflap.blocks.token_choice.choose_tokens``.

    Returns:
        {layer: the sums and the number of tokens, [cols + 1], fp64}.
    """
    found: dict[str, Tensor] = {}
    batches = calibration.batches(batch_size)
    with quiet_forward(model.module):
        for visit in walk(model, model.towers, batches, "statistics", tokens=tokens):
            if (statistics := visit.measure(statistic, leave=True)) is not None:
                found |= {layer.name: statistics[layer].kept() for layer in visit.block.layers}
    return found
