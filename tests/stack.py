"""A model that is no more than a stack of blocks, which read rows of 8 features."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ecoflap.data.batch import Batch
from ecoflap.models.core.prunable import Loss, PrunableModel
from ecoflap.models.core.towers import Selection
from ecoflap.models.loading.loader import prunable


def mean_square(module: nn.Module, batch: Batch, copies: int = 1) -> Tensor:
    """Of what the blocks make of ``x``, [batch]."""
    hidden = batch["x"]
    for block in module.blocks:  # type: ignore[union-attr]
        hidden = block(hidden)
    return hidden.square().mean(dim=(1, 2))


def stack(*blocks: Callable[[], nn.Module], loss: Loss = mean_square) -> PrunableModel:
    """One block after the other, the same weights each time."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = nn.Module()
        module.blocks = nn.ModuleList(block() for block in blocks)
    return prunable("stack", module, None, loss, Selection())
