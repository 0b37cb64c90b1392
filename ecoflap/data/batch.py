"""Model inputs as dicts of tensors: of one sample, and of a batch."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

Sample = dict[str, Tensor]
"""Model inputs of one sample, without a batch dimension."""

Batch = Mapping[str, Tensor]
"""Model inputs of several samples; the first dimension of each tensor is samples."""


def samples_in(batch: Batch) -> int:
    """How many samples a batch holds."""
    return len(next(iter(batch.values()), ()))


def first_samples(batch: Batch, count: int) -> dict[str, Tensor]:
    """The first samples of a batch."""
    return {name: tensor[:count] for name, tensor in batch.items()}
