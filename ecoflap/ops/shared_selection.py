"""Masks of matrices whose rows are split over several processes, identical to those of one process.

Where rows do not compete, each process selects among its own. Where they do, the processes first exchange all
scores of the matrix, or one score per row that competes for a remainder; this costs little beside a solve.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

from torch import Tensor

from ecoflap.ops.selection import (
    Keep,
    Pattern,
    check_keep,
    select,
    select_by_row,
    select_in_matrix,
    select_in_rows,
)


class Part(NamedTuple):
    """Some consecutive rows of a matrix, or all of them.

    Attributes:
        start: the first row.
        rows: of the whole matrix.
        summed: gives the sum of a tensor over all parts of the matrix; all of them must call it.
    """

    start: int
    rows: int
    summed: Callable[[Tensor], Tensor]

    @classmethod
    def whole(cls, matrix: Tensor) -> Part:
        """The part that a whole matrix [rows, cols] is."""
        return cls(0, len(matrix), lambda tensor: tensor)

    @classmethod
    def each(cls, matrices: Sequence[Tensor], given: Sequence[Part] | None) -> Sequence[Part]:
        """The parts that matrices are: those that are given, or else whole ones."""
        return [cls.whole(matrix) for matrix in matrices] if given is None else given

    def of_all(self, values: Tensor) -> Tensor:
        """The values of all rows of the matrix [rows, ...], from those of this part [some rows, ...]."""
        whole = values.new_zeros(self.rows, *values.shape[1:])
        whole[self.start : self.start + len(values)] = values
        return self.summed(whole)


def select_part(metric: Tensor, keep: Keep, pattern: Pattern, part: Part) -> Tensor:
    """The rows of a part in the mask that ``select`` gives the whole matrix.

    Args:
        metric: scores of the part's rows [some rows, cols].
        keep: number of weights to keep in the whole matrix or in each of its rows; ignored for a pattern
            (n, m).
        pattern: which weights compete.
        part: which rows they are.

    Returns:
        Boolean mask [some rows, cols].

    Raises:
        ValueError: if the metric is not a matrix or holds NaN, or ``keep`` is out of range.
    """
    if isinstance(keep, Tensor):
        return select_by_row(metric, keep[part.start : part.start + len(metric)])
    if part.rows == len(metric) or isinstance(pattern, tuple):
        return select(metric, keep, pattern)
    check_keep((part.rows, metric.shape[1]), keep)
    if pattern == "matrix":
        return select_in_matrix(part.of_all(metric), keep)[part.start : part.start + len(metric)]
    return _in_rows(metric, keep, part)


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
