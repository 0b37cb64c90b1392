"""The precision that a model is trained in, whatever its own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from ecoflap.errors import NumericalError
from ecoflap.models.core.prunable import PrunableModel, in_float32


@contextmanager
def trained_in_float32(model: PrunableModel) -> Iterator[None]:
    """Hold the weights of a model in fp32 while it is trained, and refuse what comes out if it diverged.

    The loss of a step says nothing about the weights after it, and large ones may leave the range of the
    model's own dtype, so the weights are judged as they will be saved.

    Raises:
        NumericalError: if a trained weight is NaN or infinite in the model's dtype.
    """
    with in_float32(model.module):
        yield
    for name, parameter in model.module.named_parameters():
        if not torch.isfinite(parameter).all():
            dtype = str(parameter.dtype).removeprefix("torch.")
            raise NumericalError(
                f"{name} of {model.name} holds NaN or infinite weights in {dtype} after the training, which"
                " has diverged; use a smaller finetune.learning_rate"
            )
