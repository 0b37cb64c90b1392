"""Damp and factor the layer Hessian H = c X^T X of inputs X [tokens, cols], once for all layers that read X.

SparseGPT uses the upper factor U of the inverse, inv(H) = U^T U (Frantar and Alistarh 2023, algorithm 1). Row
j of U holds what the solve needs once columns 0..j-1 are final: U_jj^2 is the j-th diagonal entry of the
inverse of the trailing Hessian.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from ecoflap.ops.checks import require_finite_gram, require_square

SMALLEST_ESCALATION = 1e-4  # first damping to try after 0, which tenfold steps would never leave
SMALL_TRIANGLE = 128  # columns; below it the calls cost more than the arithmetic
LARGEST_DAMPING = 1.0  # beyond the mean diagonal the damping, not the data, decides
SMALLEST_NORM = 1e-8  # of the largest, of columns scaled to unit norm


class NotPositiveDefiniteError(ValueError):
    """No damping made the Hessian positive definite."""


class InverseFactor(NamedTuple):
    """The factored inverse of one damped Hessian.

    Attributes:
        upper: U [cols, cols], upper triangular fp32, with inv(H + damping * mean(diag H) * I) = U^T U.
        dead: columns whose input is always zero [cols], boolean.
        damping: the damping used, as a fraction of the mean diagonal; larger than requested when the first
            factorisation failed.
    """

    upper: Tensor
    dead: Tensor
    damping: float


def inverse_factor(hessian: Tensor, damping: float = 0.01) -> InverseFactor:
    """Damp a Hessian and factor its inverse, with more damping each time the factorisation fails.

    U^T U = inv(H + damping * mean(diag H) * I), as in SparseGPT (Frantar and Alistarh 2023, algorithm 1).

    Dead columns (zero diagonal) interact with no other column, so any positive diagonal serves; they count as
    zeros in the mean. (The published code sets their diagonal to 1 before it takes the mean, which is
    negligible at its scale of H and would dominate at another.) A failed factorisation is retried with ten
    times the damping, until an attempt at 1 or more has failed too.

    Args:
        hessian: symmetric positive semi-definite [cols, cols], any floating dtype; its scale does not matter.
        damping: fraction of the mean diagonal that is added to the diagonal, 0 or more.

    Returns:
        The factor, the dead columns and the damping that was used.

    Raises:
        ValueError: if the Hessian is not square or not finite, or the damping is negative or not finite.
        NotPositiveDefiniteError: if no damping made the Hessian positive definite.
    """
    _check(hessian, damping)
    diagonal = hessian.diagonal().to(torch.float32)
    dead = diagonal == 0
    mean = diagonal.mean() if not dead.all() else diagonal.new_ones(())
    diagonal = torch.where(dead, mean, diagonal)
    for attempt in _escalation(damping):
        upper = _upper_inverse_factor(hessian, diagonal + attempt * mean)
        if upper is not None:
            return InverseFactor(upper, dead, attempt)
    raise NotPositiveDefiniteError(
        f"the Hessian [{len(hessian)}, {len(hessian)}] is not positive definite even with damping {attempt:g}"
        f" of its mean diagonal {float(mean):.3g}; check that it is a symmetric Gram matrix accumulated in"
        " fp32, or use more calibration tokens"
    )


def unit_columns(gram: Tensor) -> tuple[Tensor, Tensor]:
    """A Gram matrix in input columns that are scaled to unit norm.

    A dead column counts as one of tiny norm: ADMM removes its weights first, and leaves those that it keeps
    unchanged.

    Args:
        gram: c X^T X of inputs X [tokens, cols], any scale c: [cols, cols].

    Returns:
        gram / (n n^T), a copy [cols, cols] fp32, and the norms n [cols].

    Raises:
        ValueError: if the Gram matrix is not finite.
    """
    require_finite_gram(gram)
    norms = gram.diagonal().to(torch.float32).clamp_min(0).sqrt()
    largest = norms.max()
    norms = norms.clamp_min(float(SMALLEST_NORM * largest)) if largest > 0 else torch.ones_like(norms)
    return gram.to(torch.float32) / norms / norms[:, None], norms


def _upper_inverse_factor(hessian: Tensor, diagonal: Tensor) -> Tensor | None:
    """Factor inv(H), with the diagonal of H [cols, cols] replaced by `diagonal` [cols].

    Returns None if that matrix is not positive definite.

    With the columns in reverse order, H = L L^T gives inv(H) = inv(L)^T inv(L), and inv(L) in the original
    order is upper triangular. This takes one Cholesky factorisation and one triangular inverse instead of
    Cholesky, inverse, Cholesky: it is cheaper, and the inverse is never formed, so it can't become
    indefinite.
    """
    reversed_hessian = hessian.to(torch.float32).flip(0, 1)  # a copy: the caller's Hessian stays as it is
    reversed_hessian.diagonal().copy_(diagonal.flip(0))
    lower, failed_at = torch.linalg.cholesky_ex(reversed_hessian)
    if failed_at.item():
        return None
    inverse = torch.zeros_like(lower)
    _invert_lower(lower, inverse)
    upper = inverse.flip(0, 1)
    return upper if upper.isfinite().all() else None


def _invert_lower(lower: Tensor, inverse: Tensor) -> None:
    """Write the inverse of a lower triangular matrix [cols, cols] into `inverse`, which is zero.

    The inverse of [[A, 0], [B, C]] is [[inv(A), 0], [-inv(C) B inv(A), inv(C)]]. Split in halves down to
    small triangles, nearly all work is matrix products; a triangular solve against the identity would not
    make use of the identity's zeros and takes over twice as long.
    """
    size = len(lower)
    if size <= SMALL_TRIANGLE:
        identity = torch.eye(size, dtype=lower.dtype, device=lower.device)
        inverse.copy_(torch.linalg.solve_triangular(lower, identity, upper=False))
        return
    first, second = slice(0, size // 2), slice(size // 2, size)
    _invert_lower(lower[first, first], inverse[first, first])
    _invert_lower(lower[second, second], inverse[second, second])
    inverse[second, first] = (inverse[second, second] @ lower[second, first]) @ inverse[first, first].neg()


def _escalation(damping: float) -> Iterator[float]:
    """The dampings to try, in ascending tenfold steps up to the first of at least LARGEST_DAMPING."""
    yield damping
    while damping < LARGEST_DAMPING:
        damping = max(10 * damping, SMALLEST_ESCALATION)
        yield damping


def _check(hessian: Tensor, damping: float) -> None:
    require_square(hessian, "Hessian")
    if not (math.isfinite(damping) and damping >= 0):
        raise ValueError(
            f"damping is a fraction of the mean diagonal, 0 or more (0.01 is usual); found {damping}"
        )
    require_finite_gram(hessian, "Hessian")
