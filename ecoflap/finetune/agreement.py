"""What the processes of a run evaluate and train: the first one's weights and masks.

Where each has pruned the whole model by itself, two accelerators need not agree to the last bit.
"""

from __future__ import annotations

from collections.abc import MutableMapping

import torch
from torch import Tensor

from ecoflap.distributed.collectives import tensor_from
from ecoflap.distributed.processes import size
from ecoflap.models.core.prunable import PrunableModel


@torch.no_grad()
def agree(model: PrunableModel, masks: MutableMapping[str, Tensor]) -> None:
    """Broadcast the first process's weights and masks to all processes, in place."""
    if size() == 1:
        return
    for tensor in model.module.state_dict().values():
        tensor.copy_(tensor_from(tensor))
    for name in masks:
        masks[name] = tensor_from(masks[name])
