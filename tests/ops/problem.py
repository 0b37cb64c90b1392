"""A layer to prune, with correlated inputs."""

from __future__ import annotations

import torch
from torch import Tensor


def problem(rows: int, cols: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """A weight [rows, cols] and the Gram matrix [cols, cols] of its inputs."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(cols, cols, generator=generator)
    inputs = torch.randn(300, cols, generator=generator) @ mixing
    inputs += torch.randn(300, 1, generator=generator)
    return torch.randn(rows, cols, generator=generator), inputs.T @ inputs / 300
