"""Select the largest entries of many tensors together, exactly, without concatenating the tensors."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

LOW = 1 << 16


def global_threshold(metrics: Sequence[Callable[[], Tensor]], keep: int) -> tuple[float, int]:
    """The value of the smallest kept entry when the ``keep`` largest entries of all tensors are kept.

    The bit patterns of non-negative floats sort like the floats, so two histograms of 16 bits each find the
    value, and every tensor is evaluated twice.

    Args:
        metrics: one function per tensor that returns it when called; entries are at least 0 and are compared
            in fp32.
        keep: number of entries to keep, at least 1.

    Returns:
        (threshold, number of entries equal to it that are kept).

    Raises:
        ValueError: if an entry is negative, NaN or infinite, or there are fewer than ``keep`` entries.
    """
    high = torch.zeros(1 << 15, dtype=torch.long)
    for metric in metrics:
        high += torch.bincount(_bits(metric()) >> 16, minlength=1 << 15).cpu()
    count = int(high.sum())
    if not 1 <= keep <= count:
        raise ValueError(f"asked to keep {keep} of {count} entries; valid counts are 1 to {count}")
    bin_of, left = _last(high, keep)
    low = torch.zeros(LOW, dtype=torch.long)
    for metric in metrics:
        bits = _bits(metric())
        low += torch.bincount(bits[bits >> 16 == bin_of] & (LOW - 1), minlength=LOW).cpu()
    rest, ties = _last(low, left)
    return float(torch.tensor((bin_of << 16) | rest, dtype=torch.int32).view(torch.float32)), ties


def select_globally(metrics: Sequence[Callable[[], Tensor]], keep: int) -> list[Tensor]:
    """Masks that keep the ``keep`` largest entries of all tensors together.

    mask_t = (metric_t > threshold), plus the first entries equal to the threshold, in the order of the
    tensors, until the count is met: global magnitude pruning (Han et al. 2015) where the metric is |W|.

    Args:
        metrics: one function per tensor that returns it when called; it is called up to three times.
        keep: number of entries to keep in all tensors together.

    Returns:
        One boolean mask per tensor, of its shape, True where the entry is kept.

    Raises:
        ValueError: if an entry is negative, NaN or infinite, or there are fewer than ``keep`` entries.
    """
    if keep == 0:
        return [torch.zeros_like(metric(), dtype=torch.bool) for metric in metrics]
    threshold, ties = global_threshold(metrics, keep)
    masks = []
    for metric in metrics:
        values = metric().float()  # as the threshold was found
        mask, equal = values > threshold, values == threshold
        first = equal & (equal.flatten().cumsum(0).view_as(equal) <= ties)
        ties -= int(first.sum())
        masks.append(mask | first)
    return masks


def _bits(metric: Tensor) -> Tensor:
    """The entries as integers of the same order, [entries]."""
    if not torch.isfinite(metric).all() or (metric < 0).any():
        raise ValueError("the metric has entries that are negative, NaN or infinite")
    positive_zeros = metric.float().flatten() + 0.0  # the bits of -0.0 would sort last
    return positive_zeros.view(torch.int32)


def _last(counts: Tensor, keep: int) -> tuple[int, int]:
    """The bin of a histogram with the ``keep``-th largest entry, and how many of its entries are kept."""
    from_top = counts.flip(0).cumsum(0)
    place = int(torch.searchsorted(from_top, keep))
    above = int(from_top[place - 1]) if place else 0
    return len(counts) - 1 - place, keep - above
