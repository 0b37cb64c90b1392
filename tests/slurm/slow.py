"""Losses that take their time, so that a job can be met while it works."""

from __future__ import annotations

import os
import time

from torch import Tensor, nn

from ecoflap.data.batch import Batch
from ecoflap.models.families.language.causal_lm import language_loss


def slow_loss(module: nn.Module, batch: Batch, copies: int = 1) -> Tensor:
    """The language model's own loss, a second later."""
    time.sleep(1.0)
    return language_loss(module, batch, copies)


def endless_at_first(module: nn.Module, batch: Batch, copies: int = 1) -> Tensor:
    """The language model's own loss, ten seconds later unless Slurm has started the job before."""
    if os.environ.get("SLURM_RESTART_COUNT", "0") == "0":
        time.sleep(10.0)
    return language_loss(module, batch, copies)
