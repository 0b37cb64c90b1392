"""The Wanda metric: a weight matters as much as its size times the size of the inputs that it multiplies."""

import torch
from torch import Tensor


def wanda_metric(weight: Tensor, mean_square: Tensor) -> Tensor:
    """Score every weight by |W_ij| * sqrt(mean_square_j) (Sun et al. 2024, equation 1).

    The published norm is taken over all tokens; a mean differs from it by one factor per matrix, which
    changes no mask.

    Args:
        weight: [rows, cols], any floating dtype.
        mean_square: mean of the squared input of each column [cols], in squared activation units; 0 for
            columns that never fire.

    Returns:
        Scores [rows, cols] in fp32; half precision would merge close scores into ties.

    Raises:
        ValueError: the statistics do not have one entry per column.
    """
    if weight.ndim != 2 or mean_square.shape != weight.shape[1:]:
        raise ValueError(
            f"weight [rows, cols] needs mean_square [cols]; found {tuple(weight.shape)} and"
            f" {tuple(mean_square.shape)}"
        )
    return weight.detach().to(torch.float32).abs() * mean_square.to(torch.float32).sqrt()
