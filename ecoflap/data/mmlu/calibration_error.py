"""Calibration errors, the gap between confidence and accuracy: root-mean-square and expected."""

from __future__ import annotations

import torch
from torch import Tensor

ADAPTIVE = 100  # answers per bin
FIXED = 15  # bins of one width


def rms_calibration_error(confidence: Tensor, right: Tensor, size: int = ADAPTIVE) -> float:
    """Root-mean-square gap between accuracy and confidence, in percent, over adaptive bins.

    The answers are sorted by confidence and split into bins of ``size``, so that all bins are equally
    reliable. The last bin takes the remainder, and fewer answers make one bin. Bins are weighted by their
    number of answers.

    Args:
        confidence: probability of each answer, [answers].
        right: whether it is right, [answers].
        size: answers per bin.
    """
    order = confidence.argsort(stable=True)
    bins = torch.arange(len(order)).div(size, rounding_mode="floor").clamp(max=max(len(order) // size - 1, 0))
    gaps, shares = _gaps(confidence[order], right[order], bins)
    return 100 * float((shares * gaps**2).sum().sqrt())


def expected_calibration_error(confidence: Tensor, right: Tensor, count: int = FIXED) -> float:
    """Mean absolute gap between accuracy and confidence, in percent, over fixed bins.

    The bins are ``count`` intervals of equal width, open on the left and closed on the right, and weighted by
    their number of answers.

    Args:
        confidence: probability of each answer, [answers].
        right: whether it is right, [answers].
        count: number of bins.
    """
    bins = (confidence.double() * count).ceil().long().sub(1).clamp(0, count - 1)
    gaps, shares = _gaps(confidence, right, bins)
    return 100 * float((shares * gaps).sum())


def _gaps(confidence: Tensor, right: Tensor, bins: Tensor) -> tuple[Tensor, Tensor]:
    """|accuracy - confidence| of each bin that has answers, and its share of them."""
    every, place, sizes = bins.unique(return_inverse=True, return_counts=True)
    difference = right.double() - confidence.double()
    sums = torch.zeros(len(every), dtype=torch.double).index_add(0, place, difference)
    return (sums / sizes).abs(), sizes.double() / len(bins)
