"""SparseGPT: prune matrices and update the kept weights (Frantar and Alistarh 2023, algorithm 1).

Columns become final from left to right. Removing weight w_j of a row leaves the error e_j = w_j / U_jj, and
the row's later columns change by -e_j U_j,k to compensate. The mask of a block of columns is fixed before the
block is solved, so the errors of a row are the solution of one triangular system. It is solved in leaves of a
few columns; matrix products update the later columns.

Rows are independent, so layers that read the same input are solved as one matrix, each with its own mask.
"""

from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor

from ecoflap.ops.checks import require_columns, require_finite_weight
from ecoflap.ops.hessian import InverseFactor
from ecoflap.ops.selection import Pattern, check_keep, check_n_of_m, keep_n_of_m
from ecoflap.ops.shared_selection import Part, select_part

BLOCKS_PER_UPDATE = 2  # far columns are read and written once for so many blocks


class Solution(NamedTuple):
    """One pruned matrix.

    Attributes:
        weight: [rows, cols] fp32, exactly zero where pruned.
        mask: [rows, cols] boolean, True where kept.
    """

    weight: Tensor
    mask: Tensor


def sparsegpt_solve(
    weights: Sequence[Tensor],
    factor: InverseFactor,
    keeps: Sequence[int],
    pattern: Pattern,
    block: int = 128,
    leaf: int = 16,
    parts: Sequence[Part] | None = None,
) -> list[Solution]:
    """Prune matrices that read the same input, given its factor U.

    Minimises ||W X - W' X||^2 column by column, with saliency W_ij^2 / U_jj^2. For each pruned w_j in turn:
    e_j = w_j / U_jj, and w_k -= e_j U_jk for the later columns k (Frantar and Alistarh 2023, algorithm 1).

    Without N:M, the first c columns hold floor(keep * c / cols) kept weights at the end c of every block of
    columns. Weights of dead columns are pruned first; those that are kept because the count is met keep their
    value.

    Args:
        weights: each [rows, cols], any floating dtype, on the factor's device; rows may differ.
        factor: from `inverse_factor` of the Hessian [cols, cols].
        keeps: for each matrix the number of weights to keep, of all its rows; ignored for a pattern (n, m).
        pattern: which weights compete, within each block of columns.
        block: columns per mask decision.
        leaf: columns per triangular solve; n:m uses m.
        parts: which rows each matrix is, where others are pruned elsewhere at the same time; by default all.

    Returns:
        For each matrix the pruned weight and its mask. No argument is modified.

    Raises:
        ValueError: if arguments do not match each other, or a weight is not finite.
    """
    parts = Part.each(weights, parts)
    _check(weights, factor, keeps, pattern, block, leaf, parts)
    cols = weights[0].shape[1]
    if isinstance(pattern, tuple):
        leaf = pattern[1]  # a group's mask depends on weights updated by the groups before it
        block = max(block // leaf, 1) * leaf
    # Columns lie one after the other in memory: [cols, rows of all matrices].
    stacked = torch.cat([weight.detach() for weight in weights]) if len(weights) > 1 else weights[0].detach()
    solved = stacked.t().to(torch.float32, copy=True, memory_format=torch.contiguous_format)
    mask = torch.ones_like(solved, dtype=torch.bool)
    matrices = spans_of(weights)
    # Far columns are updated once for several blocks: each update reads and writes all of them.
    for several in _spans(0, cols, block * BLOCKS_PER_UPDATE):
        errors = torch.empty_like(solved[several])
        for columns in _spans(several.start, several.stop, block):
            if not isinstance(pattern, tuple):
                saliency = _saliency(solved, factor, columns)
                for keep, rows, part in zip(keeps, matrices, parts, strict=True):
                    share, scores = _share(keep, cols, columns.start, columns.stop), saliency[:, rows]
                    mask[columns, rows] = select_part(scores.contiguous().t(), share, pattern, part).t()
            for inner in _spans(columns.start, columns.stop, leaf):
                if isinstance(pattern, tuple):
                    mask[inner] = keep_n_of_m(_saliency(solved, factor, inner).t(), *pattern).t()
                within = errors[inner.start - several.start : inner.stop - several.start]
                _pruning_errors(solved[inner], mask[inner], factor.upper[inner, inner], within)
                _correct(solved, factor, inner, within, slice(inner.start, columns.stop))
            solved[columns].mul_(mask[columns])  # the solve leaves zero up to rounding
            done = errors[columns.start - several.start : columns.stop - several.start]
            _correct(solved, factor, columns, done, slice(columns.stop, several.stop))
        _correct(solved, factor, several, errors, slice(several.stop, cols))
    return [Solution(solved[:, rows].t().contiguous(), mask[:, rows].t().contiguous()) for rows in matrices]


def _correct(solved: Tensor, factor: InverseFactor, columns: slice, errors: Tensor, others: slice) -> None:
    """Update other columns to compensate for the errors [columns, rows] of pruned ones."""
    solved[others].addmm_(factor.upper[columns, others].t(), errors, alpha=-1)


def _saliency(solved: Tensor, factor: InverseFactor, columns: slice) -> Tensor:
    """The root of the loss that removing each weight of some columns adds, |W| / diag(U) [columns, rows].

    The weights are those that earlier columns have already updated. The root is in the range of fp32 where
    the squares of very large or small weights are not.
    """
    scores = solved[columns].abs() / factor.upper.diagonal()[columns].unsqueeze(1)
    # Below any loss: removing these costs nothing, not even a chance to compensate for other weights.
    return scores.masked_fill_(factor.dead[columns].unsqueeze(1), -1.0)


def _pruning_errors(weight: Tensor, mask: Tensor, upper: Tensor, errors: Tensor) -> None:
    """Solve sum_{i<=j} e_i U_ij = w_j for the pruned j of each row, with e_j = 0 for the kept j.

    On an accelerator, launching operations dominates, so the systems of all rows are solved as one batch. On
    the CPU, memory traffic dominates: a leaf fits into the cache, and its columns are eliminated one by one.

    Args:
        weight: one leaf, updated by all earlier columns [leaf, rows].
        mask: True where kept [leaf, rows].
        upper: the factor's diagonal block of the leaf [leaf, leaf].
        errors: output for e [leaf, rows].
    """
    solve = eliminate if weight.device.type == "cpu" else solve_batched
    solve(weight, mask, upper, errors)


def solve_batched(weight: Tensor, mask: Tensor, upper: Tensor, errors: Tensor) -> None:
    """`_pruning_errors` as one batch of triangular systems, one per row."""
    identity = torch.eye(len(upper), dtype=upper.dtype, device=upper.device)
    # [rows, leaf, leaf]: the equation of a kept column reads e_j = 0.
    systems = torch.where(mask.t().unsqueeze(1), identity, upper)
    targets = weight.masked_fill(mask, 0.0).t().unsqueeze(1)
    errors.copy_(torch.linalg.solve_triangular(systems, targets, upper=True, left=False).squeeze(1).t())


def eliminate(weight: Tensor, mask: Tensor, upper: Tensor, errors: Tensor) -> None:
    """`_pruning_errors` column by column."""
    remaining = weight.clone()
    scale = (~mask).to(weight.dtype) / upper.diagonal().unsqueeze(1)  # zero where kept
    for column in range(len(upper)):
        torch.mul(remaining[column], scale[column], out=errors[column])
        if column + 1 < len(upper):
            remaining[column + 1 :].addr_(upper[column, column + 1 :], errors[column], alpha=-1)


def _share(keep: int, cols: int, start: int, stop: int) -> int:
    """Number of weights to keep in columns start..stop-1.

    Rounding is cumulative: the shares add up to `keep`, and none is larger than its block.
    """
    return keep * stop // cols - keep * start // cols


def _spans(start: int, stop: int, width: int) -> list[slice]:
    return [slice(at, min(at + width, stop)) for at in range(start, stop, width)]


def spans_of(weights: Sequence[Tensor]) -> list[slice]:
    """The rows of each matrix among those of all."""
    ends = accumulate(map(len, weights))
    return [slice(end - len(weight), end) for end, weight in zip(ends, weights, strict=True)]


def _check(
    weights: Sequence[Tensor],
    factor: InverseFactor,
    keeps: Sequence[int],
    pattern: Pattern,
    block: int,
    leaf: int,
    parts: Sequence[Part],
) -> None:
    for weight, keep, part in zip(weights, keeps, parts, strict=True):
        require_columns(weight, factor.upper, "a factor")
        require_finite_weight(weight)
        if isinstance(pattern, tuple):
            check_n_of_m(weight.shape[1], *pattern)
        else:
            check_keep((part.rows, weight.shape[1]), keep)
    if block < 1 or leaf < 1:
        raise ValueError(f"block and leaf are column counts of at least 1; found block={block}, leaf={leaf}")
