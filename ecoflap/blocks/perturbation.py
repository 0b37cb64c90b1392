"""Perturb what blocks and layers compute, to learn what depends on them.

Whatever stays equal under the perturbation does not depend on them, so pruning them can't change it either.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from ecoflap.models.core.hooks import hooks
from ecoflap.models.core.layers import Layer


def perturbed(tensor: Tensor) -> Tensor:
    """Unrelated numbers of a tensor's shape, dtype and magnitude; the same ones each time."""
    if not tensor.numel():
        return tensor
    steps = torch.arange(1, tensor.numel() + 1, device=tensor.device, dtype=torch.float32)
    wave = steps.sin_().view(tensor.shape)
    return (wave * tensor.float().abs().amax().clamp(min=1)).to(tensor.dtype)


def perturbing(layers: Iterable[Layer]) -> AbstractContextManager[None]:
    """Perturb the outputs of layers, as pruning them would."""

    def change(_: nn.Module, __: Any, output: Any) -> Any:
        return perturbed(output) if isinstance(output, Tensor) else None

    return hooks(layer.module.register_forward_hook(change) for layer in layers)
