"""Move sparsities down a gradient while their weighted mean stays at a budget."""

from __future__ import annotations

from torch import Tensor

HALVINGS = 60  # of an interval of length 2: down to the rounding of fp64


def shift_to_budget(sparsities: Tensor, sizes: Tensor, target: float, high: float) -> Tensor:
    """Shift all sparsities by one number and clip them, so that the share of removed weights is the target.

    Args:
        sparsities: [groups], fp64.
        sizes: number of weights of each group, [groups].
        target: the share of all weights to remove, between 0 and ``high``.
        high: the largest sparsity of a group.

    Returns:
        The shifted sparsities, [groups].

    Raises:
        ValueError: if the target is outside [0, high].
    """
    if not 0 <= target <= high:
        raise ValueError(
            f"the target {target} is outside the allowed sparsities [0, {high}]; choose one inside"
        )
    least, most = -float(sparsities.max()), high - float(sparsities.min())
    for _ in range(HALVINGS):
        middle = (least + most) / 2
        shifted = (sparsities + middle).clamp(0, high)
        if float((shifted * sizes).sum() / sizes.sum()) < target:
            least = middle
        else:
            most = middle
    return (sparsities + most).clamp(0, high)


def descend(sparsities: Tensor, marginals: Tensor, sizes: Tensor, rate: float) -> Tensor:
    """Lower the sparsity of groups whose weights are worth more than the mean, and raise that of the others.

    With mu the mean of |m_g| by size: p_g <- p_g - 2 rate (m_g - mu) / (|m_g| + mu). The fraction is
    tanh(log(m_g / mu) / 2) where m_g > 0, so that a few groups of very large marginals do not set the pace of
    all, and -1 where m_g <= 0: removing these weights lowers the loss.

    Args:
        sparsities: p, [groups], fp64.
        marginals: m, by how much the loss falls per additional kept weight, [groups].
        sizes: number of weights of each group, [groups].
        rate: half of the largest step.

    Returns:
        The new sparsities, [groups], with a different mean.
    """
    mean = (marginals.abs() * sizes).sum() / sizes.sum()
    if not mean > 0:
        return sparsities
    return sparsities - 2 * rate * (marginals - mean) / (marginals.abs() + mean)
