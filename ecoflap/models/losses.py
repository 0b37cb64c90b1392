"""Losses, one value per sample, so that many probes can share a forward pass."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

IGNORED = -100


def token_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy over the target tokens of each sample.

    Args:
        logits: [batch, tokens, vocabulary].
        labels: [batch, tokens]; -100 marks tokens that are no target.

    Returns:
        [batch], fp32.
    """
    # One sample at a time: an fp32 copy of all logits would be the largest tensor of the whole run.
    rows = [cross_entropy(row.float(), target, ignore_index=IGNORED) for row, target in zip(logits, labels, strict=True)]
    return torch.stack(rows)


def next_token_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """``token_loss`` of a decoder-only model, whose logits at one position predict the next token."""
    return token_loss(logits[:, :-1], labels[:, 1:])
