"""Positives and negatives in a batch of pairs, for losses that compare samples.

Samples that show the same are positives of each other, as each sample is of itself.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ecoflap.data.batch import Batch

FEW = 64  # values of each sample to compare first; only samples that agree there are compared in full


def image_text_positives(batch: Batch, copies: int) -> Tensor:
    """``find_positives`` of images and their texts.

    Args:
        batch: ``pixel_values`` [batch, ...], ``input_ids`` and ``attention_mask`` [batch, tokens].
        copies: number of identical replicas in the batch.
    """
    texts = torch.stack([batch["input_ids"], batch["attention_mask"]], dim=1)
    return find_positives((batch["pixel_values"], texts), copies)


def find_positives(views: Sequence[Tensor], copies: int) -> Tensor:
    """Positives of each sample within a replica: those with the same first or the same second view.

    BLIP counts all texts of an image as positives (https://arxiv.org/abs/2201.12086); likewise all images of
    a text count here.

    Args:
        views: the model's inputs, [batch, ...] each. Features would not do: they change while weights are
            probed.
        copies: number of identical replicas in the batch.

    Returns:
        Boolean, symmetric [samples, samples].
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


def nearest_negatives(positives: Tensor, copies: int) -> Tensor:
    """A negative for each sample: the nearest one before it, cyclically within its replica.

    Args:
        positives: boolean [samples, samples]; see ``find_positives``.
        copies: number of identical replicas in the batch.

    Returns:
        Indices [batch]; a sample without negatives has its own.
    """
    own = torch.arange(len(positives), device=positives.device)
    before = (own[:, None] - own) % len(positives)  # [samples, steps back], the sample itself first
    steps = (~positives.gather(1, before)).int().argmax(dim=1, keepdim=True)
    first = torch.arange(copies, device=positives.device)[:, None] * len(positives)
    return (first + before.gather(1, steps)[:, 0]).flatten()
