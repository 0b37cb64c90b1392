"""Put other numbers in place of what blocks compute: what stays as it was doesn't depend on them.

Pruning them can't change it either.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ecoflap.models.core.layers import Layer


def disturbed(tensor: Tensor) -> Tensor:
    """Numbers of a tensor's shape, type and size that have nothing to do with it, the same ones each time."""
    if not tensor.numel():
        return tensor
    wave = (
        torch.arange(1, tensor.numel() + 1, device=tensor.device, dtype=torch.float32)
        .sin_()
        .view(tensor.shape)
    )
    return (wave * tensor.float().abs().amax().clamp(min=1)).to(tensor.dtype)


@contextmanager
def disturbing(layers: Iterable[Layer]) -> Iterator[None]:
    """Disturb what layers put out, as pruning them would."""

    def change(_: nn.Module, __: Any, output: Any) -> Any:
        return disturbed(output) if isinstance(output, Tensor) else None

    handles = [layer.module.register_forward_hook(change) for layer in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
