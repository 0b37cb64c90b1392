"""A model as a trainer needs it, which maps inputs to a loss."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ecoflap.models.core.prunable import PrunableModel


class Learner(nn.Module):
    """A model whose forward pass is its loss, as wrappers for distributed training need it."""

    def __init__(self, model: PrunableModel) -> None:
        super().__init__()
        self.module = model.module
        self.model = (model,)  # in a tuple: it is no submodule

    def forward(self, rows: Tensor, groups: list[dict[str, Tensor]]) -> Tensor:
        """Mean loss over the samples of all groups.

        Args:
            rows: [batch], one entry per sample.
            groups: model inputs, one batch per shape.
        """
        losses = [self.model[0].loss(group).sum() for group in groups]
        return torch.stack(losses).sum() / len(rows)
