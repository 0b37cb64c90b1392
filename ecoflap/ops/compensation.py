"""Compensation: weights that undo a part of the input error that earlier pruned layers cause.

A layer W reads x~ in the pruned model and x in the dense one, where its output is W x. The least-squares
weights for this output on the calibration tokens are

    min over W* of ||W X - W* X~||^2:   W* = W + W (X - X~) X~^T inv(X~ X~^T)

A layer that is added to a residual stream, s~ instead of s, can compensate for the stream's error too: then

    min over W* of ||S + W X - S~ - W* X~||^2:   W* = W + (W (X - X~) + S - S~) X~^T inv(X~ X~^T)

The whole step overfits the calibration tokens, so only a share of it is taken, as Arai and Ichikawa
(2025, QEP) do for quantisation, and the matrix is damped in columns scaled to unit norm.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ecoflap.ops.hessian import unit_columns

SHARE = 0.5  # of the step; found on held-out calibration rows (docs/in_context_ablations.md), and QEP's own
DAMPING = 0.1  # share of the mean diagonal, ADMM's


def compensate(
    weights: Sequence[Tensor],
    gram: Tensor,
    drift: Tensor,
    residuals: Sequence[Tensor | None],
) -> list[Tensor]:
    """The weights that a pruner should reproduce on the inputs of the pruned model.

    Args:
        weights: of layers that read the same input, each [rows, cols], any floating dtype.
        gram: mean of x~ x~^T, [cols, cols].
        drift: mean of (x - x~) x~^T over the same tokens, [cols, cols].
        residuals: of each layer the mean of (s - s~) x~^T, [rows, cols]; None if it writes into no residual
            stream s.

    Returns:
        For each matrix W + SHARE (W drift + residual) inv(gram), [rows, cols] fp32; W where the Gram matrix
        is zero, as no weight then matters. No argument is modified.

    Raises:
        ValueError: if the Gram matrix is not finite.
    """
    matrix, norms = unit_columns(gram)
    if not matrix.diagonal().any():
        return [weight.detach().to(torch.float32, copy=True) for weight in weights]
    matrix.diagonal().add_(DAMPING * matrix.diagonal().mean())
    lower = torch.linalg.cholesky(matrix)
    compensated = []
    for weight, residual in zip(weights, residuals, strict=True):
        wide = weight.detach().to(torch.float32)
        missing = wide @ drift if residual is None else wide @ drift + residual
        # missing inv(gram) is the transpose of inv(gram) missing^T; inv(gram) = inv(matrix) / (n n^T)
        step = torch.cholesky_solve((missing / norms).t().contiguous(), lower).t() / norms
        compensated.append(torch.add(wide, step, alpha=SHARE))
    return compensated
