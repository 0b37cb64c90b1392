"""Masks of matrices whose rows several processes share: those of one process, to the last weight.

A process selects among its own rows. What competes across rows is settled by sums over all parts of the
matrix: how many scores are in each of 2048 intervals, three times, each time within the interval before,
gives the largest pruned score of a matrix exactly; those of all rows say which rows keep one weight more.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ecoflap.ops.selection import Pattern, select, select_in_rows

DIGIT = 11  # bits of a score that one sum looks at
SHIFTS = (22, 11, 0)  # of the digits of 32 bits, the highest first


class Part(NamedTuple):
    """Some consecutive rows of a matrix, or all of them.

    Attributes:
        start: the first row.
        rows: of the whole matrix.
        summed: gives the sum of a tensor over all parts of the matrix; all of them call it alike.
    """

    start: int
    rows: int
    summed: Callable[[Tensor], Tensor]

    @classmethod
    def whole(cls, matrix: Tensor) -> Part:
        """The part that a whole matrix [rows, cols] is."""
        return cls(0, len(matrix), lambda tensor: tensor)

    def of_all(self, values: Tensor) -> Tensor:
        """The values of all rows of the matrix, from one per row of this part."""
        whole = values.new_zeros(self.rows)
        whole[self.start : self.start + len(values)] = values
        return self.summed(whole)


def select_part(metric: Tensor, keep: int, pattern: Pattern, part: Part) -> Tensor:
    """The rows of a part in the mask that ``select`` gives the whole matrix.

    Args:
        metric: fp32 scores of the part's rows [some rows, cols].
        keep: number of weights to keep of the whole matrix; a pattern (n, m) says so itself.
        pattern: which weights compete.
        part: which rows they are.

    Returns:
        Boolean mask [some rows, cols].

    Raises:
        ValueError: if the metric is not a matrix or holds NaN, or ``keep`` is out of range.
    """
    if part.rows == len(metric) or isinstance(pattern, tuple):
        return select(metric, keep, pattern)
    if not 0 <= keep <= part.rows * metric.shape[1]:
        raise ValueError(
            f"asked to keep {keep} weights of a matrix of {part.rows} rows and {metric.shape[1]} columns"
        )
    return _in_rows(metric, keep, part) if pattern == "row" else _in_matrix(metric, keep, part)


def _in_rows(metric: Tensor, keep: int, part: Part) -> Tensor:
    """The part of ``select_in_rows``."""
    each, extra = divmod(keep, part.rows)
    mask = select_in_rows(metric, each * len(metric))
    if extra:
        best_pruned = part.of_all(metric.masked_fill(mask, -math.inf).amax(dim=1))
        spared = best_pruned.sort(descending=True, stable=True).indices[:extra] - part.start
        own = spared[(spared >= 0) & (spared < len(metric))]
        if len(own):
            mask[own] = select_in_rows(metric[own], (each + 1) * len(own))
    return mask


def _in_matrix(metric: Tensor, keep: int, part: Part) -> Tensor:
    """The part of ``select_in_matrix``."""
    prune = part.rows * metric.shape[1] - keep
    if prune == 0:
        return torch.ones_like(metric, dtype=torch.bool)
    ranks = _ranks(metric)
    threshold, ties, ties_to_prune = _order_statistic(ranks, prune, part.summed)
    mask = ranks > threshold
    if ties_to_prune < ties:  # the first ones of the matrix, row by row
        tied = ranks == threshold
        before = int(part.of_all(tied.sum(dim=1))[: part.start].sum())
        mask |= tied & (tied.flatten().cumsum(dim=0).view_as(tied) > ties_to_prune - before)
    return mask


def _ranks(scores: Tensor) -> Tensor:
    """Integers from 0 to 2^32 - 1 in the order of fp32 scores, equal where those are, int64.

    Raises:
        ValueError: if a score is NaN.
    """
    if scores.amax().isnan():
        raise ValueError(f"{int(scores.isnan().sum())} of {scores.numel()} scores are NaN")
    bits = (scores.contiguous() + 0.0).view(torch.int32)  # -0 + 0 is 0
    return torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits).long() + 2**31


def _order_statistic(ranks: Tensor, place: int, summed: Callable[[Tensor], Tensor]) -> tuple[int, int, int]:
    """The integer in a place of the ascending order of those of all parts; places begin at 1.

    Returns:
        The integer, how many there are of it, and how many of those are up to the place.
    """
    left, found, count = ranks.flatten(), 0, 0
    for shift in SHIFTS:
        digits = (left >> shift) & (2**DIGIT - 1)
        counts = summed(torch.bincount(digits, minlength=2**DIGIT))
        ends = counts.cumsum(dim=0)
        digit = int(torch.searchsorted(ends, place))
        count = int(counts[digit])
        place -= int(ends[digit]) - count
        found, left = found << DIGIT | digit, left[digits == digit]
    return found, count, place
