"""A loss that takes its time, so that a job can be met while it works."""

from __future__ import annotations

import time

from torch import Tensor, nn

from ecoflap.models.causal_lm import language_loss
from ecoflap.models.prunable import Batch

SECONDS = 1.0


def slow_loss(module: nn.Module, batch: Batch, copies: int = 1) -> Tensor:
    """The language model's own loss, a second later."""
    time.sleep(SECONDS)
    return language_loss(module, batch, copies)
