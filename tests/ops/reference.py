"""Slow and obvious versions of what ecoflap.ops does fast. They share no code with it."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def keep_highest(scores: list[float], keep: int) -> list[bool]:
    """One list: prune by a stable ascending sort, so the lowest index of equal scores goes first."""
    pruned = set(sorted(range(len(scores)), key=lambda i: scores[i])[: len(scores) - keep])
    return [i not in pruned for i in range(len(scores))]


def matrix_mask(metric: Tensor, keep: int) -> Tensor:
    return torch.tensor(keep_highest(metric.flatten().tolist(), keep)).view(metric.shape)


def row_mask(metric: Tensor, keep: int) -> Tensor:
    """Each row its floor share by a stable sort, then the left-over weights one at a time to the row with the
    best pruned score.
    """
    table = metric.tolist()
    each, extra = divmod(keep, len(table))
    best_pruned = [sorted(row)[len(row) - each - 1] if each < len(row) else None for row in table]
    lucky = sorted(range(len(table)), key=lambda r: (-best_pruned[r], r) if extra else r)[:extra]
    return torch.tensor([keep_highest(row, each + (r in lucky)) for r, row in enumerate(table)])


def n_of_m_mask(metric: Tensor, n: int, m: int) -> Tensor:
    return torch.tensor(
        [
            [kept for at in range(0, len(row), m) for kept in keep_highest(row[at : at + m], n)]
            for row in metric.tolist()
        ]
    )


def sparsegpt(
    weight: Tensor,
    hessian: Tensor,
    prune_per_block: Sequence[int] = (),
    n_of_m: tuple[int, int] | None = None,
    damping: float = 0.01,
    block: int = 128,
) -> tuple[Tensor, Tensor]:
    """SparseGPT column by column in fp64, with the Cholesky of an explicit inverse; returns (weight,
    mask).
    """
    weight, hessian = weight.double().clone(), hessian.double().clone()
    cols = weight.shape[1]
    mean = hessian.diagonal().mean()
    for column in range(cols):
        if hessian[column, column] == 0:
            hessian[column, column] = 1
            weight[:, column] = 0
    hessian += damping * mean * torch.eye(cols)
    upper = torch.linalg.cholesky(torch.linalg.inv(hessian), upper=True)
    mask = torch.ones(weight.shape, dtype=torch.bool)
    for column in range(cols):
        width = n_of_m[1] if n_of_m else block
        if column % width == 0:
            group = slice(column, min(column + width, cols))
            saliency = (weight[:, group] / upper.diagonal()[group]) ** 2
            if n_of_m:
                mask[:, group] = n_of_m_mask(saliency, *n_of_m)
            else:
                mask[:, group] = matrix_mask(saliency, saliency.numel() - prune_per_block[column // width])
        error = weight[:, column] / upper[column, column] * ~mask[:, column]
        weight[:, column:] -= error[:, None] * upper[column, None, column:]
    return weight * mask, mask


def water_level(sizes: Sequence[int], scores: Sequence[float], total: int, cap: float) -> list[float]:
    """Water filling by bisection of lambda, in real numbers; needs the total to be within reach of the groups
    with positive scores.
    """
    floors = [size * (1 - cap) for size in sizes]

    def keeps(level: float) -> list[float]:
        return [
            min(size, floor + level * score) for size, floor, score in zip(sizes, floors, scores, strict=True)
        ]

    low, high = 0.0, max(sizes) / min(score for score in scores if score > 0)
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if math.fsum(keeps(middle)) < total else (low, middle)
    return keeps(high)
