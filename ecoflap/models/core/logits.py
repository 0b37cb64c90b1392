"""Logits of a model of any family: collect those that a loss compares with its targets, and check them."""

from __future__ import annotations

from contextlib import AbstractContextManager
from contextvars import ContextVar

from torch import Tensor

from ecoflap.errors import NumericalError
from ecoflap.models.core.hooks import setting

_collected: ContextVar[list[Tensor] | None] = ContextVar("collected", default=None)


def collecting_logits() -> AbstractContextManager[list[Tensor]]:
    """Collect the logits of every target of the losses that are computed in this context.

    Returns:
        A context whose list fills up: [targets, classes] each, in the order in which the losses were
            computed.
    """
    return setting(_collected, [])


def collect(logits: Tensor, is_target: Tensor | None = None) -> None:
    """Show the logits that a loss is about to compare with its targets.

    Args:
        logits: [..., classes].
        is_target: bool [...]; None if all of them are targets.
    """
    found = _collected.get()
    if found is not None:
        found.append(logits.flatten(0, -2) if is_target is None else logits[is_target])


def finite(values: Tensor) -> Tensor:
    """Logits, or features or losses, that are compared with each other; a NaN would win or lose by its place.

    Raises:
        NumericalError: if one is NaN or infinite.
    """
    if not values.isfinite().all():
        raise NumericalError(
            "the model gives logits or features that are not finite; use model.dtype=float32 or bfloat16, or"
            " prune less"
        )
    return values
