"""The error of removing a share of each row's weights one by one, the cheapest first."""

import torch
from torch import Tensor


def greedy_removal_error(weight: Tensor, gram: Tensor, share: float, columns: int) -> float:
    """The errors e^T G e of all rows together, e the weights removed from a row (LSA, Yang et al. 2026).

    Removing weight i of a row costs c_i, at first w_i^2 G_ii, and adds 2 w_i w_j G_ij to the cost of every
    other weight j. So the costs of the removed weights add up to the joint error. A share of the weights of
    every ``columns`` columns is removed, from the first columns to the last.

    Args:
        weight: [rows, cols], any floating dtype.
        gram: mean of x x^T over the layer's inputs, [cols, cols].
        share: of the weights of each row that are removed, 0 to 1.
        columns: columns among which a row's cheapest weight is chosen.

    Returns:
        The error in squared units of the output, summed over rows, if the other weights stay unchanged.
    """
    weight, gram = weight.float(), gram.float()
    cost = weight.square() * gram.diagonal()
    errors = torch.zeros(len(weight), dtype=torch.float32, device=weight.device)
    for start in range(0, weight.shape[1], columns):
        inside, later = slice(start, start + columns), slice(start + columns, None)
        removed, added = _remove(weight[:, inside], gram[inside, inside], cost[:, inside].clone(), share)
        errors += added
        cost[:, later] += 2 * weight[:, later] * (removed @ gram[inside, later])
    return float(errors.cpu().double().sum())


def _remove(weight: Tensor, gram: Tensor, cost: Tensor, share: float) -> tuple[Tensor, Tensor]:
    """Remove a share of each row's weights of some columns.

    Args:
        weight: [rows, columns].
        gram: [columns, columns].
        cost: of the removal of each weight, [rows, columns]; overwritten.
        share: of the weights to remove.

    Returns:
        The removed weights, [rows, columns], 0 where a weight is kept, and the sum of their costs, [rows].
    """
    removed = torch.zeros_like(weight)
    errors = torch.zeros(len(weight), dtype=torch.float32, device=weight.device)
    for _ in range(int(weight.shape[1] * share)):
        index = cost.argmin(dim=1, keepdim=True)
        errors += cost.gather(1, index).squeeze(1)
        value = weight.gather(1, index)
        removed.scatter_(1, index, value)
        cost += 2 * weight * value * gram[index.squeeze(1)]
        cost.scatter_(1, index, torch.inf)
    return removed, errors
