"""Masks and weights by ADMM: gradual pruning, in which every kept weight adapts (Boža, TMLR 2024).

Minimises ||W X - W' X||^2 over W' with a mask. In columns scaled to unit norm, D = W n and N = G / (n n^T),
ADMM alternates between the mask and least squares without one: from V = D,

    Z = V on the mask, 0 elsewhere;   U = V - Z
    V = U + (1 - r) Z + r (D + penalty (Z - U - D) P),   P = inv(N + (damping + penalty) I)

with over-relaxation r (Boyd et al. 2011, section 3.4.3; 1 as published). P does not depend on the weights, so
a solve is as many matrix products as iterations, for all matrices that read the same input at once.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ecoflap.ops.checks import require_columns, require_finite_weight, require_square
from ecoflap.ops.hessian import unit_columns
from ecoflap.ops.selection import Keep, Pattern, check_keep, check_n_of_m, keep_n_of_m
from ecoflap.ops.shared_selection import Part, select_part
from ecoflap.ops.sparsegpt import Solution, spans_of


class NormalisedInverse(NamedTuple):
    """The inverse in which ADMM takes its steps.

    Attributes:
        inverse: P [cols, cols] fp32.
        norms: n [cols], the root mean square of each input column.
        damping: share of the mean diagonal of N that was added to its diagonal.
        penalty: of the distance between a weight and its masked version.
    """

    inverse: Tensor
    norms: Tensor
    damping: float
    penalty: float


def normalised_inverse(gram: Tensor, damping: float = 0.1, penalty: float = 1.0) -> NormalisedInverse:
    """Normalise a Gram matrix to unit columns, damp it and invert it.

    Args:
        gram: c X^T X of inputs X [tokens, cols], any scale c: [cols, cols].
        damping: share of the mean diagonal that is added to the diagonal, 0 or more.
        penalty: of the distance between a weight and its masked version, above 0.

    Raises:
        ValueError: if the Gram matrix is not square, not finite or, with so little damping and penalty, not
            positive definite, or a number is out of range.
    """
    _check_gram(gram, damping, penalty)
    matrix, norms = unit_columns(gram)
    matrix.diagonal().add_(damping * matrix.diagonal().mean() + penalty)
    lower, failed_at = torch.linalg.cholesky_ex(matrix)
    if failed_at.item():
        raise ValueError(
            f"the Gram matrix is singular with damping={damping:g} and penalty={penalty:g}; use a larger"
            " damping (0.1 is usual)"
        )
    return NormalisedInverse(torch.cholesky_inverse(lower), norms, damping, penalty)


def admm_solve(
    weights: Sequence[Tensor],
    inverse: NormalisedInverse,
    keeps: Sequence[Keep],
    patterns: Sequence[Pattern],
    iterations: int,
    schedule: int,
    relaxation: float,
    parts: Sequence[Part] | None = None,
) -> list[Solution]:
    """Prune matrices that read the same input: the mask of each of the first iterations is sparser.

    After iteration t of the schedule, the share 1 - (1 - t / schedule)^3 of the weights to remove is removed,
    rounded down: those with the smallest |V|, which is the Wanda metric at first.

    Args:
        weights: each [rows, cols], any floating dtype, on the inverse's device; rows may differ.
        inverse: of the Gram matrix of their inputs.
        keeps: for each matrix the number of weights to keep, in all of its rows or in each of them.
        patterns: for each matrix which weights compete. Between a pattern (n, m) and its mask, weights beside
            the n largest of each group compete in the whole matrix.
        iterations: in all (published: 20); at least those of the schedule.
        schedule: iterations that choose a mask (published: 15).
        relaxation: r, from 1 (published) to below 2.
        parts: which rows each matrix is, where others are pruned elsewhere at the same time; by default all.

    Returns:
        For each matrix the pruned weight and its mask; rows that lose nothing keep their weights exactly. No
        argument is modified.

    Raises:
        ValueError: if arguments do not match each other, or a weight is not finite.
    """
    _check_weights(weights, inverse)
    if not 1 <= schedule <= iterations:
        raise ValueError(f"schedule={schedule} must be between 1 and iterations={iterations}")
    parts = Part.each(weights, parts)
    for weight, keep, pattern, part in zip(weights, keeps, patterns, parts, strict=True):
        check_keep((part.rows, weight.shape[1]), keep)
        if isinstance(pattern, tuple):
            check_n_of_m(weight.shape[1], *pattern)
    scaled = _scaled(weights, inverse)
    state, mask, spans = scaled.clone(), torch.ones_like(scaled, dtype=torch.bool), spans_of(weights)
    for iteration in range(iterations):
        if iteration < schedule:
            gone = 1 - (1 - (iteration + 1) / schedule) ** 3
            for span, keep, pattern, part in zip(spans, keeps, patterns, parts, strict=True):
                mask[span] = _gradual_mask(state[span].abs(), keep, gone, pattern, part)
        _step(state, scaled, mask, inverse, relaxation)
    solved = _unscaled(state, mask, weights, inverse)
    return [Solution(solved[span], mask[span]) for span in spans]


def admm_repair(
    weights: Sequence[Tensor],
    inverse: NormalisedInverse,
    masks: Sequence[Tensor],
    iterations: int,
    relaxation: float,
) -> list[Tensor]:
    """Adapt the kept weights of matrices that read the same input to given masks.

    Args:
        weights: dense, each [rows, cols], any floating dtype, on the inverse's device; rows may differ.
        inverse: of the Gram matrix of their inputs.
        masks: for each matrix [rows, cols], True where kept.
        iterations: at least 1.
        relaxation: r, from 1 to below 2.

    Returns:
        For each matrix the weights [rows, cols] fp32, exactly zero where pruned; rows that lose nothing keep
        their weights exactly. No argument is modified.

    Raises:
        ValueError: if arguments do not match each other, or a weight is not finite.
    """
    _check_weights(weights, inverse)
    mask = torch.cat(list(masks))
    scaled = _scaled(weights, inverse)
    state = scaled.clone()
    for _ in range(iterations):
        _step(state, scaled, mask, inverse, relaxation)
    solved = _unscaled(state, mask, weights, inverse)
    return [solved[span] for span in spans_of(weights)]


def _step(state: Tensor, scaled: Tensor, mask: Tensor, inverse: NormalisedInverse, relaxation: float) -> None:
    """One iteration on V = ``state``, in place, of D = ``scaled``, both [rows of all matrices, cols]."""
    kept = state * mask  # Z, so that Z - U = 2 Z - V; arithmetic is faster than torch.where on the CPU
    target = kept.mul(2).sub_(state).sub_(scaled)
    state.sub_(kept, alpha=relaxation).add_(scaled, alpha=relaxation)
    state.addmm_(target, inverse.inverse, alpha=relaxation * inverse.penalty)


def _gradual_mask(metric: Tensor, keep: Keep, gone: float, pattern: Pattern, part: Part) -> Tensor:
    """The mask [rows, cols] when the share ``gone`` of the weights to remove is removed."""
    if isinstance(keep, Tensor):
        removed = (metric.shape[1] - keep).double().mul(gone).long()
        return select_part(metric, metric.shape[1] - removed, pattern, part)
    size = part.rows * metric.shape[1]
    if gone == 1 or keep == size:
        return select_part(metric, keep, pattern, part)
    prune = int((size - keep) * gone)
    if isinstance(pattern, tuple):
        protected = keep_n_of_m(metric, *pattern)
        return select_part(metric.masked_fill_(protected, math.inf), size - prune, "matrix", part)
    if pattern == "row":  # whole rows of weights: no row has to be chosen for a remainder
        prune -= prune % part.rows
    return select_part(metric, size - prune, pattern, part)


def _scaled(weights: Sequence[Tensor], inverse: NormalisedInverse) -> Tensor:
    """D = W n of all matrices, [rows of all, cols]."""
    return torch.cat([weight.detach().to(torch.float32) for weight in weights]).mul_(inverse.norms)


def _unscaled(state: Tensor, mask: Tensor, weights: Sequence[Tensor], inverse: NormalisedInverse) -> Tensor:
    """Z / n of all matrices, [rows of all, cols]."""
    solved = state.masked_fill(~mask, 0).div_(inverse.norms)
    whole = mask.all(dim=1)
    if whole.any():
        solved[whole] = torch.cat([weight.detach().to(torch.float32) for weight in weights])[whole]
    return solved


def _check_gram(gram: Tensor, damping: float, penalty: float) -> None:
    require_square(gram, "Gram matrix")
    if not (math.isfinite(damping) and damping >= 0 and math.isfinite(penalty) and penalty > 0):
        raise ValueError(
            f"damping is 0 or more (0.1 is usual) and penalty above 0 (1 is usual); found {damping} and"
            f" {penalty}"
        )


def _check_weights(weights: Sequence[Tensor], inverse: NormalisedInverse) -> None:
    for weight in weights:
        require_columns(weight, inverse.inverse, "an inverse")
        require_finite_weight(weight)
