"""The RIA metric: a weight's share of its row and of its column, times a power of its input's norm."""

import torch
from torch import Tensor

from ecoflap.ops.checks import require_mean_square


def ria_metric(weight: Tensor, mean_square: Tensor, power: float = 0.5) -> Tensor:
    """Score every weight by (|W_ij| / sum_i |W_ij| + |W_ij| / sum_j |W_ij|) ||X_j||^power.

    Relative importance and activations (Zhang et al., ICLR 2024). The published norm is over all tokens; the
    root mean square differs from it by one factor per matrix, which changes no mask.

    Args:
        weight: [rows, cols], any floating dtype.
        mean_square: mean of the squared input of each column [cols].
        power: of the norm of the inputs.

    Returns:
        Scores [rows, cols] in fp32; 0 for the weights of a row or a column of zeros.

    Raises:
        ValueError: if the statistics do not have one entry per column.
    """
    require_mean_square(weight, mean_square)
    size = weight.detach().to(torch.float32).abs()
    tiny = torch.finfo(torch.float32).tiny
    relative = size / size.sum(dim=0).clamp_min(tiny) + size / size.sum(dim=1, keepdim=True).clamp_min(tiny)
    return relative * mean_square.to(torch.float32).sqrt() ** power
