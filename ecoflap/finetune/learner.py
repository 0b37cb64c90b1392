"""A model as a trainer needs it, which maps inputs to a loss."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from ecoflap.distributed.collectives import gathered
from ecoflap.errors import UserError
from ecoflap.models.core.prunable import PrunableModel


class Learner(nn.Module):
    """A model whose forward pass is its loss, as wrappers for distributed training need it."""

    def __init__(self, model: PrunableModel, in_step: bool = False) -> None:
        """``in_step``: run every pass in all processes, as sharded weights need it."""
        super().__init__()
        self.in_step = in_step
        self.module = model.module
        self.model = (model,)  # in a tuple: it is not a submodule

    def train(self, mode: bool = True) -> Learner:
        """Set the mode of all modules; those that hold running means and variances keep to them.

        Batch norms would change these in training, where no checkpoint holds them.
        """
        super().train(mode)
        for child in self.modules():
            if isinstance(child, _NormBase):
                child.eval()
        return self

    def forward(self, rows: Tensor, groups: list[dict[str, Tensor]]) -> Tensor:
        """Mean loss over the samples of all groups.

        Args:
            rows: [batch], one entry per sample; without any, the loss is that of what the groups hold.
            groups: model inputs, one batch per shape.

        Raises:
            UserError: if processes are to run in step, and their inputs have different names.
        """
        fill = _missing(groups) if self.in_step else 0
        losses = [self.model[0].loss(group).sum() for group in groups]
        losses += [0 * self.model[0].loss(groups[0]).sum() for _ in range(fill)]
        return torch.stack(losses).sum() / max(1, len(rows))


def _missing(groups: list[dict[str, Tensor]]) -> int:
    """How many groups another process has more than this one.

    Raises:
        UserError: if inputs have different names, so that some may not run through all blocks.
    """
    everywhere = gathered([sorted(group) for group in groups])
    names = {tuple(names) for one in everywhere for names in one}
    if len(names) > 1:
        raise UserError(
            f"finetune.shard=true needs samples with the same inputs, and here they have {sorted(names)};"
            " set it to false"
        )
    return max(map(len, everywhere)) - len(groups)
