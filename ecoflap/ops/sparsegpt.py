"""SparseGPT: prune one matrix and correct the weights that stay (Frantar and Alistarh 2023, algorithm 1).

Columns are made final from left to right. Removing weight w_j of a row leaves the error e_j = w_j / U_jj, and the later columns of that row move by
-e_j U_j,k to make up for it. The mask of a block of columns is fixed before the block is solved, so the errors of a row are the solution of one
triangular system instead of a loop over columns. That is done in leaves of a few columns; later columns are updated by matrix products.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from ecoflap.ops.hessian import InverseFactor, inverse_factor
from ecoflap.ops.selection import check_n_of_m, select_in_matrix, select_n_of_m


class Solution(NamedTuple):
    """One pruned matrix.

    Attributes:
        weight: [rows, cols] fp32, exactly zero where pruned.
        mask: [rows, cols] boolean, True where kept.
        damping: the damping used, a fraction of the mean diagonal of the Hessian.
    """

    weight: Tensor
    mask: Tensor
    damping: float


def sparsegpt_solve(
    weight: Tensor,
    hessian: Tensor,
    keep: int | None = None,
    n_of_m: tuple[int, int] | None = None,
    damping: float = 0.01,
    block: int = 128,
    leaf: int = 16,
) -> Solution:
    """Prune a matrix given the Hessian of its inputs; `solve_with_factor` after `inverse_factor`, which see.

    Args:
        weight: [rows, cols], any floating dtype.
        hessian: c X^T X of the layer's inputs X [tokens, cols], any scale c: [cols, cols].
        keep: number of weights that stay, or None with `n_of_m`.
        n_of_m: (n, m) to keep n of every m consecutive columns of a row, or None with `keep`.
        damping: fraction of the mean diagonal added to the diagonal.
        block: columns per mask decision.
        leaf: columns per triangular solve; n:m uses m.

    Returns:
        The pruned weight, its mask and the damping used. No argument is modified.

    Raises:
        ValueError: arguments do not fit each other, or are not finite.
        NotPositiveDefiniteError: the Hessian could not be factored.
    """
    return solve_with_factor(weight, inverse_factor(hessian, damping), keep, n_of_m, block, leaf)


def solve_with_factor(
    weight: Tensor,
    factor: InverseFactor,
    keep: int | None = None,
    n_of_m: tuple[int, int] | None = None,
    block: int = 128,
    leaf: int = 16,
) -> Solution:
    """Prune a matrix given a factor that layers with the same input may share.

    With `keep`, each block of columns gets its share so that the first c columns hold floor(keep * c / cols) kept weights at every block's end c.
    Weights of dead columns go first; those that stay because the count is met keep their value.

    Args:
        weight: [rows, cols], any floating dtype, on the factor's device.
        factor: from `inverse_factor` of the layer's Hessian [cols, cols].
        keep: number of weights that stay, or None with `n_of_m`.
        n_of_m: (n, m) to keep n of every m consecutive columns of a row, or None with `keep`.
        block: columns per mask decision.
        leaf: columns per triangular solve; n:m uses m.

    Returns:
        The pruned weight, its mask and the damping used. No argument is modified.

    Raises:
        ValueError: arguments do not fit each other, or the weight is not finite.
    """
    _check(weight, factor, keep, n_of_m, block, leaf)
    cols = weight.shape[1]
    if n_of_m is not None:
        leaf = n_of_m[1]  # a group's mask depends on weights updated by the groups before it
        block = max(block // leaf, 1) * leaf
    solved = weight.detach().to(torch.float32, copy=True)
    mask = torch.ones_like(solved, dtype=torch.bool)
    for columns in _spans(0, cols, block):
        if keep is not None:
            mask[:, columns] = select_in_matrix(_saliency(solved, factor, columns), _share(keep, cols, columns.start, columns.stop))
        errors = torch.empty_like(solved[:, columns])
        for inner in _spans(columns.start, columns.stop, leaf):
            if n_of_m is not None:
                mask[:, inner] = select_n_of_m(_saliency(solved, factor, inner), *n_of_m)
            leaf_errors = _pruning_errors(solved[:, inner], mask[:, inner], factor.upper[inner, inner])
            rest_of_block = slice(inner.start, columns.stop)
            solved[:, rest_of_block] -= leaf_errors @ factor.upper[inner, rest_of_block]
            errors[:, inner.start - columns.start : inner.stop - columns.start] = leaf_errors
        solved[:, columns].masked_fill_(~mask[:, columns], 0.0)  # solved to zero up to rounding
        solved[:, columns.stop :] -= errors @ factor.upper[columns, columns.stop :]
    return Solution(solved, mask, factor.damping)


def _saliency(weight: Tensor, factor: InverseFactor, columns: slice) -> Tensor:
    """The loss that removing each weight of some columns adds, W^2 / diag(U)^2 [rows, columns], for weights already updated by earlier columns."""
    scores = weight[:, columns].square() / factor.upper.diagonal()[columns].square()
    return scores.masked_fill(factor.dead[columns], -1.0)  # below any loss: removing these costs nothing, not even a chance to correct other weights


def _pruning_errors(weight: Tensor, mask: Tensor, upper: Tensor) -> Tensor:
    """Solve sum_{i<=j} e_i U_ij = w_j for the pruned j of each row, with e_j = 0 for the kept j.

    Args:
        weight: one leaf, updated by all earlier columns [rows, leaf].
        mask: True where kept [rows, leaf].
        upper: the factor's diagonal block of the leaf [leaf, leaf].

    Returns:
        Errors e [rows, leaf].
    """
    identity = torch.eye(len(upper), dtype=upper.dtype, device=upper.device)
    systems = torch.where(mask.unsqueeze(1), identity, upper)  # [rows, leaf, leaf]: a kept column's equation reads e_j = 0
    targets = weight.masked_fill(mask, 0.0).unsqueeze(1)
    errors: Tensor = torch.linalg.solve_triangular(systems, targets, upper=True, left=False)
    return errors.squeeze(1)


def _share(keep: int, cols: int, start: int, stop: int) -> int:
    """Weights to keep in columns start..stop-1, from cumulative rounding: the shares add up to `keep`, and none is larger than its block."""
    return keep * stop // cols - keep * start // cols


def _spans(start: int, stop: int, width: int) -> list[slice]:
    return [slice(at, min(at + width, stop)) for at in range(start, stop, width)]


def _check(weight: Tensor, factor: InverseFactor, keep: int | None, n_of_m: tuple[int, int] | None, block: int, leaf: int) -> None:
    if weight.ndim != 2 or factor.upper.shape != (weight.shape[1], weight.shape[1]):
        raise ValueError(f"weight [rows, cols] needs a factor [cols, cols]; found {tuple(weight.shape)} and {tuple(factor.upper.shape)}")
    if not weight.isfinite().all():  # pruned, it would spread over its row
        raise ValueError(f"{int((~weight.isfinite()).sum())} of {weight.numel()} weights are NaN or infinite; check the checkpoint and its dtype")
    if (keep is None) == (n_of_m is None):
        raise ValueError(f"give either keep or n_of_m, not both and not neither; found keep={keep}, n_of_m={n_of_m}")
    if keep is not None and not 0 <= keep <= weight.numel():
        raise ValueError(f"asked to keep {keep} weights of a {tuple(weight.shape)} matrix; valid counts are 0 to {weight.numel()}")
    if n_of_m is not None:
        check_n_of_m(weight.shape[1], *n_of_m)
    if block < 1 or leaf < 1:
        raise ValueError(f"block and leaf are column counts of at least 1; found block={block}, leaf={leaf}")
