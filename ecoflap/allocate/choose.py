"""Choose an allocator's free parameter: prune at each candidate, and compare calibration losses."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from typing import Any

from torch import Tensor

from ecoflap.allocate.protocol import Context
from ecoflap.allocate.trial import LazyTrial
from ecoflap.blocks.loss_batches import loss_batches
from ecoflap.errors import NumericalError
from ecoflap.models.core.prunable import PrunableModel

log = logging.getLogger(__name__)

CountsAt = Callable[[float], Mapping[str, int]]
"""Given a candidate: how many weights each layer keeps, by name."""
Losses = dict[float, float | None]
"""{candidate: the mean loss of the pruned model}; None where it is not finite."""


def choose(
    model: PrunableModel,
    context: Context,
    candidates: Sequence[float],
    counts: CountsAt,
    name: Mapping[str, Any],
    samples: int,
) -> tuple[float, Losses]:
    """The candidate whose pruned model has the smallest mean loss; of equal ones, the first.

    Args:
        model: dense; its weights are unchanged afterwards, bit for bit.
        context: its pruner prunes, on inputs of the dense model.
        candidates: the values to try.
        counts: what the layers keep at a candidate.
        name: what the losses depend on beside candidate and options, for ``context.recall``.
        samples: how many samples of the calibration set are compared, from the first.

    Raises:
        NumericalError: if no loss is finite.
    """

    @cache
    def batches() -> list[dict[str, Tensor]]:
        return loss_batches(model, context.samples.take(samples), context.batch_size)

    losses: Losses = {}
    with LazyTrial(model, context) as trial:

        def loss(candidate: float) -> float | None:
            return trial.pruner.loss_at(counts(candidate), batches())

        for candidate in dict.fromkeys(candidates):
            losses[candidate] = context.recall({**name, "candidate": candidate}, partial(loss, candidate))
            log.info("allocate: %s=%g, loss %s", name.get("parameter"), candidate, losses[candidate])
    finite = {candidate: loss for candidate, loss in losses.items() if loss is not None}
    if not finite:
        raise NumericalError(
            f"the pruned model's loss is finite at none of {', '.join(f'{value:g}' for value in losses)};"
            " lower the sparsity, or check the model's dtype"
        )
    return min(finite, key=finite.__getitem__), losses
