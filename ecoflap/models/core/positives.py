"""Who belongs together in a batch of pairs, for losses that compare samples: those that show the same, beside
each sample and itself.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ecoflap.data.batch import Batch

FEW = 64  # values of each sample that are compared first; only those that agree there are compared whole


def right_pairs(batch: Batch, copies: int) -> Tensor:
    """``find_positives`` of pictures and their texts.

    Args:
        batch: ``pixel_values`` [batch, ...], ``input_ids`` and ``attention_mask`` [batch, tokens].
        copies: replicas that the batch is made of.
    """
    return find_positives(
        (batch["pixel_values"], torch.stack([batch["input_ids"], batch["attention_mask"]], dim=1)), copies
    )


def find_positives(views: Sequence[Tensor], copies: int) -> Tensor:
    """Which samples of a replica are right partners of which: those with the same first or the same second
    view. Bool, [samples, samples].

    BLIP takes all texts of a picture for right ones (https://arxiv.org/abs/2201.12086); by the same right, so
    are all pictures of a text.

    Args:
        views: what the model reads, [batch, ...] each; never what it makes of it, which changes while weights
            are probed.
        copies: replicas that the batch is made of, all alike.
    """
    return _same(views[0], copies) | _same(views[1], copies)


def _same(view: Tensor, copies: int) -> Tensor:
    rows = view[: len(view) // copies].flatten(1)
    few = rows[:, :: max(1, rows.shape[1] // FEW)]
    same = (few[:, None] == few).all(dim=-1)
    for row in (same.sum(dim=1) > 1).nonzero().flatten().tolist():
        others = same[row].nonzero().flatten()
        same[row, others] = (rows[others] == rows[row]).all(dim=1)
    return same


def wrong_partners(right: Tensor, copies: int) -> Tensor:
    """Of each sample, the nearest one before it (cyclically, inside its replica) that is no right partner, or
    itself if there is none. [batch]

    Args:
        right: which are right partners, [samples, samples].
        copies: replicas that the batch is made of.
    """
    own = torch.arange(len(right), device=right.device)
    before = (own[:, None] - own) % len(right)  # [samples, steps back], the sample itself first
    steps = (~right.gather(1, before)).int().argmax(dim=1, keepdim=True)
    first = torch.arange(copies, device=right.device)[:, None] * len(right)
    return (first + before.gather(1, steps)[:, 0]).flatten()
