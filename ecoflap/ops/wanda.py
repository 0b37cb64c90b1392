"""The Wanda metric: the magnitude of a weight times the norm of the input that it multiplies."""

import torch
from torch import Tensor

from ecoflap.ops.checks import require_mean_square


def wanda_metric(weight: Tensor, mean_square: Tensor) -> Tensor:
    """Score every weight by S_ij = |W_ij| * sqrt(mean_square_j) (Sun et al. 2024, equation 1).

    The published norm is ||X_j||_2 over all tokens; the root mean square differs from it by one factor per
    matrix, which changes no mask.

    Args:
        weight: [rows, cols], any floating dtype.
        mean_square: mean of the squared input of each column [cols], in squared activation units; 0 for
            columns whose input is always zero.

    Returns:
        Scores [rows, cols] in fp32; half precision would round close scores to ties.

    Raises:
        ValueError: if the statistics do not have one entry per column.
    """
    require_mean_square(weight, mean_square)
    return weight.detach().to(torch.float32).abs() * mean_square.to(torch.float32).sqrt()
