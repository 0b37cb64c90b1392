"""Choose an allocator's free parameter: prune at each candidate, and compare calibration losses."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import cached_property, partial
from typing import Any

from torch import Tensor

from ecoflap.allocate.protocol import Context
from ecoflap.allocate.trial import TrialPruner, trial_pruner
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
    losses: Losses = {}
    with ExitStack() as stack:
        trials = _Trials(model, context, samples, stack)
        for candidate in dict.fromkeys(candidates):
            losses[candidate] = context.recall(
                {**name, "candidate": candidate}, partial(trials.loss, counts, candidate)
            )
            log.info("allocate: %s=%g, loss %s", name.get("parameter"), candidate, losses[candidate])
    finite = {candidate: loss for candidate, loss in losses.items() if loss is not None}
    if not finite:
        raise NumericalError(
            f"the pruned model's loss is finite at none of {', '.join(f'{value:g}' for value in losses)};"
            " lower the sparsity, or check the model's dtype"
        )
    return min(finite, key=finite.__getitem__), losses


class _Trials:
    """Losses of trials, which share the statistics of the dense model; none are gathered before the first."""

    def __init__(self, model: PrunableModel, context: Context, samples: int, stack: ExitStack) -> None:
        self._model, self._context, self._samples, self._stack = model, context, samples, stack

    def loss(self, counts: CountsAt, candidate: float) -> float | None:
        """The mean loss of the model pruned at a candidate; None if it is not finite."""
        return self._pruner.loss_at(counts(candidate), self._batches)

    @cached_property
    def _pruner(self) -> TrialPruner:
        return self._stack.enter_context(trial_pruner(self._model, self._context))

    @cached_property
    def _batches(self) -> list[dict[str, Tensor]]:
        return loss_batches(self._model, self._context.samples.take(self._samples), self._context.batch_size)
