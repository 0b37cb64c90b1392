"""Choose the best of many tensors' entries together, exactly, without ever putting the tensors side by
side.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

LOW = 1 << 16


def global_threshold(metrics: Sequence[Callable[[], Tensor]], keep: int) -> tuple[float, int]:
    """The value of the last entry that stays when the ``keep`` largest of all tensors stay.

    A float that is not negative sorts like its bits, so two histograms of 16 bits each find the value: every
    tensor is looked at twice.

    Args:
        metrics: one function per tensor that makes it when asked, fp32, not negative.
        keep: number of entries that stay, at least 1.

    Returns:
        (threshold, number of entries equal to it that stay).

    Raises:
        ValueError: an entry is negative, NaN or infinite, or there are fewer than ``keep``.
    """
    high = torch.zeros(1 << 15, dtype=torch.long)
    for metric in metrics:
        high += torch.bincount(_bits(metric()) >> 16, minlength=1 << 15).cpu()
    if not 1 <= keep <= int(high.sum()):
        raise ValueError(f"{keep} entries cannot stay of {int(high.sum())}")
    bin_of, left = _last(high, keep)
    low = torch.zeros(LOW, dtype=torch.long)
    for metric in metrics:
        bits = _bits(metric())
        low += torch.bincount(bits[bits >> 16 == bin_of] & (LOW - 1), minlength=LOW).cpu()
    rest, ties = _last(low, left)
    return float(torch.tensor((bin_of << 16) | rest, dtype=torch.int32).view(torch.float32)), ties


def select_globally(metrics: Sequence[Callable[[], Tensor]], keep: int) -> list[Tensor]:
    """Masks, True where an entry is among the ``keep`` largest of all tensors; of equal ones the first stay,
    in the order of the tensors.

    Raises:
        ValueError: an entry is negative, NaN or infinite, or there are fewer than ``keep``.
    """
    if keep == 0:
        return [torch.zeros_like(metric(), dtype=torch.bool) for metric in metrics]
    threshold, ties = global_threshold(metrics, keep)
    masks = []
    for metric in metrics:
        values = metric()
        mask, equal = values > threshold, values == threshold
        first = equal & (equal.flatten().cumsum(0).view_as(equal) <= ties)
        ties -= int(first.sum())
        masks.append(mask | first)
    return masks


def _bits(metric: Tensor) -> Tensor:
    """The entries as integers that sort like them, [entries]."""
    if not torch.isfinite(metric).all() or (metric < 0).any():
        raise ValueError("the metric has entries that are negative, NaN or infinite")
    return (metric.float().flatten() + 0.0).view(
        torch.int32
    )  # + 0.0: the negative zero sorts like the positive


def _last(counts: Tensor, keep: int) -> tuple[int, int]:
    """From the top of a histogram, the bin of entry number ``keep``, and how many of that bin stay."""
    from_top = counts.flip(0).cumsum(0)
    place = int(torch.searchsorted(from_top, keep))
    above = int(from_top[place - 1]) if place else 0
    return len(counts) - 1 - place, keep - above
