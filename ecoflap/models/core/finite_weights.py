"""Find weights that are NaN or infinite, as damaged checkpoints have them."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from ecoflap.errors import NumericalError


def broken_parameter(module: nn.Module) -> tuple[str, nn.Parameter] | None:
    """The first parameter that holds NaN or infinite weights, with its name; None if all are finite."""
    for name, parameter in module.named_parameters():
        if parameter.device.type != "meta" and not torch.isfinite(parameter).all():
            return name, parameter
    return None


def require_finite(name: str, parts: Iterable[Tensor]) -> None:
    """Refuse a weight that was just read and holds NaN or infinite numbers.

    Args:
        name: its name, for the message.
        parts: the weight, in parts of any shape.

    Raises:
        NumericalError: if a number is NaN or infinite.
    """
    if not all(torch.isfinite(part).all() for part in parts):
        raise damaged(name)


def damaged(name: str) -> NumericalError:
    """The error of a checkpoint with such a weight."""
    return NumericalError(
        f"{name} holds NaN or infinite weights; the checkpoint is damaged, nothing was pruned"
    )
