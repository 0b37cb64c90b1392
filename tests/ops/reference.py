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


def admm(
    weight: Tensor,
    gram: Tensor,
    keep: int,
    pattern: str | tuple[int, int],
    iterations: int = 20,
    schedule: int = 15,
    relaxation: float = 1.0,
    damping: float = 0.1,
    mask: Tensor | None = None,
    penalty: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """ADMM in fp64 with Z, U and W by name, [cols, rows] as published; returns (weight, mask).

    With a mask, only weights are found.
    """
    norms = gram.double().diagonal().sqrt()
    norms = norms.clamp_min(1e-8 * norms.max())
    unit = gram.double() / norms[:, None] / norms[None, :]
    unit += damping * unit.diagonal().mean() * torch.eye(len(unit))
    w = (weight.double() * norms).t()
    target, u = unit @ w, torch.zeros_like(w)
    chosen = mask
    for step in range(1, iterations + 1):
        if mask is None and step <= schedule:
            chosen = gradual_mask((w + u).t().abs(), keep, 1 - (1 - step / schedule) ** 3, pattern)
        z = (w + u) * chosen.t()
        u = w + u - z
        least_squares = torch.linalg.solve(unit + penalty * torch.eye(len(unit)), target + penalty * (z - u))
        w = relaxation * least_squares + (1 - relaxation) * z
    return ((w + u) * chosen.t()).t() / norms, chosen


def gradual_mask(metric: Tensor, keep: int, gone: float, pattern: str | tuple[int, int]) -> Tensor:
    """The mask once the share ``gone`` of what has to go is gone."""
    size, rows = metric.numel(), len(metric)
    now = size - math.floor((size - keep) * gone + 1e-9)
    if isinstance(pattern, tuple):
        protected = n_of_m_mask(metric, *pattern)
        return matrix_mask(torch.where(protected, math.inf, metric), now)
    if pattern == "row":
        return row_mask(metric, now if gone == 1 else math.ceil(now / rows) * rows)
    return matrix_mask(metric, now)


def row_losses(weight: Tensor, gram: Tensor, mask: Tensor) -> Tensor:
    """The output error of each row under a mask, by the definition, in fp64."""
    change = torch.where(mask, 0.0, weight.double())
    return torch.stack([row @ gram.double() @ row for row in change])


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
