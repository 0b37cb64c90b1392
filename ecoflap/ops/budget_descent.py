"""Move sparsities down a gradient while their weighted mean stays at a budget."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

HALVINGS = 60  # of an interval of length 2: down to the rounding of fp64


def shift_to_budget(sparsities: Tensor, sizes: Tensor, target: float, low: float, high: float) -> Tensor:
    """Shift all sparsities by one number and clip them, so that the share of removed weights is the target.

    Args:
        sparsities: [groups], fp64.
        sizes: number of weights of each group, [groups].
        target: the share of all weights to remove, between ``low`` and ``high``.
        low: the smallest sparsity of a group.
        high: the largest sparsity of a group.

    Returns:
        The shifted sparsities, [groups].

    Raises:
        ValueError: if the target is outside [low, high].
    """
    if not low <= target <= high:
        raise ValueError(f"no sparsities in [{low}, {high}] have the mean {target}")
    least, most = low - float(sparsities.max()), high - float(sparsities.min())
    for _ in range(HALVINGS):
        middle = (least + most) / 2
        shifted = (sparsities + middle).clamp(low, high)
        if float((shifted * sizes).sum() / sizes.sum()) < target:
            least = middle
        else:
            most = middle
    return (sparsities + most).clamp(low, high)


def descend(sparsities: Tensor, marginals: Tensor, sizes: Tensor, rate: float) -> Tensor:
    """Lower the sparsity of groups whose weights are worth more than the mean, and raise that of the others.

    With mu the mean of |m_g| by size: p_g <- p_g - 2 rate (m_g - mu) / (|m_g| + mu). The fraction is
    tanh(log(m_g / mu) / 2) where m_g > 0, so that a few groups of very large marginals do not set the pace of
    all, and -1 where m_g <= 0: weights that the loss is better off without.

    Args:
        sparsities: p, [groups], fp64.
        marginals: m, the fall of the loss per weight that is kept at the margin, [groups].
        sizes: number of weights of each group, [groups].
        rate: half of the largest step.

    Returns:
        The new sparsities, [groups], with another mean.
    """
    mean = (marginals.abs() * sizes).sum() / sizes.sum()
    if not mean > 0:
        return sparsities
    return sparsities - 2 * rate * (marginals - mean) / (marginals.abs() + mean)


def round_to_total(exact: Sequence[float], sizes: Sequence[int], total: int) -> list[int]:
    """Whole numbers next to ``exact`` whose sum is ``total``, by largest remainder (ties: the lowest index).

    Args:
        exact: wanted numbers, each at least 0.
        sizes: the largest number of each.
        total: their sum, from 0 to the sum of the sizes.

    Raises:
        ValueError: if no numbers have this sum.
    """
    if not 0 <= total <= sum(sizes):
        raise ValueError(f"no numbers of at most {sum(sizes)} in all have the sum {total}")
    counts = [min(size, math.floor(wanted)) for wanted, size in zip(exact, sizes, strict=True)]
    by_remainder = sorted(range(len(counts)), key=lambda place: counts[place] - exact[place])
    while (missing := total - sum(counts)) != 0:
        order, one = (by_remainder, 1) if missing > 0 else (by_remainder[::-1], -1)
        movable = [place for place in order if 0 <= counts[place] + one <= sizes[place]]
        for place in movable[: abs(missing)]:
            counts[place] += one
    return counts
