"""Compensation: weights that undo a part of the error that pruned layers before have put into the inputs.

A layer W reads x~ in the pruned model and x in the dense one, where it puts out W x. The weights that come
closest to that on the calibration tokens are, in least squares,

    min over W* of ||W X - W* X~||^2:   W* = W + W (X - X~) X~^T inv(X~ X~^T)

All of it fits the calibration tokens and little else, so a share of the step is taken, as Arai and Ichikawa
(2025, QEP) do for quantisation, and the matrix is damped in columns scaled to unit norm.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ecoflap.ops.hessian import unit_columns

SHARE = 0.5  # of the step; found on held-out calibration rows (docs/in_context.md), and QEP's own
DAMPING = 0.1  # share of the mean diagonal, ADMM's


def compensate(
    weights: list[Tensor], gram: Tensor, drift: Tensor, share: float = SHARE, damping: float = DAMPING
) -> list[Tensor]:
    """The weights that a pruner should reproduce on the inputs of the pruned model.

    Args:
        weights: of layers that read the same input, each [rows, cols], any floating dtype.
        gram: mean of x~ x~^T, [cols, cols].
        drift: mean of (x - x~) x~^T over the same tokens, [cols, cols].
        share: of the step, 0 to 1.
        damping: share of the mean diagonal that is added to the diagonal, above 0.

    Returns:
        For each matrix W + share W drift inv(gram), [rows, cols] fp32. No argument is modified.
    """
    matrix, norms = unit_columns(gram)
    matrix.diagonal().add_(damping * matrix.diagonal().mean())
    # drift inv(gram) = the transpose of inv(gram) drift^T, with inv(gram) = inv(matrix) / (norms norms^T)
    scaled = (drift / norms).t().contiguous()
    step = (torch.cholesky_solve(scaled, torch.linalg.cholesky(matrix)) / norms[:, None]).t()
    wide = [weight.detach().to(torch.float32) for weight in weights]
    return [torch.addmm(weight, weight, step, alpha=share) for weight in wide]
