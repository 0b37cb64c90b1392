"""The Kullback-Leibler divergence of a model's predictions from those of another one."""

import torch
from torch import Tensor

AT_ONCE = 2**22  # logits whose log-probabilities are in memory at a time


def kl_divergence(logits: Tensor, target: Tensor) -> Tensor:
    """KL(p || q) of each row, with p = softmax(target) and q = softmax(logits).

    A class that the target excludes, with a logit of -inf, adds nothing.

    Args:
        logits: [rows, classes].
        target: [rows, classes].

    Returns:
        [rows], fp32.
    """
    rows = max(1, AT_ONCE // logits.shape[1])
    parts = []
    for some, wanted in zip(logits.split(rows), target.split(rows), strict=True):
        q, p = (one.float().log_softmax(dim=1) for one in (some, wanted))
        parts.append((p.exp() * (p - q)).masked_fill(p == -torch.inf, 0).sum(dim=1))
    return torch.cat(parts)
