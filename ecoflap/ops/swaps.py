"""Masks refined by swaps of a pruned and a kept weight of a row, each of which lowers the row's output error.

With e the pruned weights of a row w and zero elsewhere, the row's error is e^T G e. A change of e by
d_i = -w_i in a pruned column i, which revives it, or by d_i = w_i in a kept one, which prunes it, adds

    l_i = d_i^2 G_ii + 2 d_i (G e)_i

and a second one in column j adds l_j + 2 d_i d_j G_ij: the exact gain of a swap (SparseSwaps, Zimmer et al.
2025).

A round looks at the pruned and the kept weights of smallest l in each row, makes the best swap among all
their pairs until none lowers the error, and computes G e anew. Rows are independent: all make their swaps at
once.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ecoflap.ops.checks import require_finite_gram, require_finite_weight

CANDIDATES = 8  # of each kind in a row and round
WORTH = 1e-5  # what a swap has to gain, as a share of its row's error: more than rounding


class _Changes(NamedTuple):
    """Candidate changes of each row: k that revive a weight, then k that prune one.

    Attributes:
        columns: [rows, 2 k].
        losses: l, what each adds to the error by itself [rows, 2 k].
        joint: 2 d_i d_j G_ij of all pairs [rows, 2 k, 2 k].
    """

    columns: Tensor
    losses: Tensor
    joint: Tensor


def swap_masks(weight: Tensor, gram: Tensor, mask: Tensor, swaps: int, group: int | None = None) -> Tensor:
    """Swap pruned against kept weights within rows: the counts of rows stay, and no row's error rises.

    Args:
        weight: dense [rows, cols], any floating dtype.
        gram: c X^T X of the inputs X [tokens, cols], any scale c: [cols, cols].
        mask: [rows, cols], True where kept.
        swaps: maximum number of swaps per row.
        group: consecutive columns that a swap stays within, such as the M of N:M; None for the whole row.

    Returns:
        The new mask [rows, cols]. No argument is modified.

    Raises:
        ValueError: if the shapes do not match, or a weight or the Gram matrix is not finite.
    """
    _check(weight, gram, mask)
    weight, gram, mask = weight.detach().to(torch.float32), gram.to(torch.float32), mask.clone()
    active = torch.arange(len(weight), device=weight.device)
    left = torch.full_like(active, swaps)
    while len(active):
        rows, part = weight[active], mask[active]
        changes, worth = _changes(rows, gram, part, group)
        made = _best_swaps(changes, worth, part, left, within=group is not None)
        mask[active], left = part, left - made
        more = (made > 0) & (left > 0)
        active, left = active[more], left[more]
    return mask


def _changes(weight: Tensor, gram: Tensor, mask: Tensor, group: int | None) -> tuple[_Changes, Tensor]:
    """The candidates of each row, and what a swap has to gain [rows]."""
    pruned = weight.masked_fill(mask, 0)
    correlation = pruned @ gram
    step = torch.where(mask, weight, -weight)  # d
    losses = step.square() * gram.diagonal() + 2 * step * correlation
    if group is None:
        count = min(CANDIDATES, weight.shape[1])
        revived = losses.masked_fill(mask, math.inf).topk(count, dim=1, largest=False).indices
        removed = losses.masked_fill(~mask, math.inf).topk(count, dim=1, largest=False).indices
    else:
        revived, removed = _pairs_of_groups(step, losses, gram, mask, group)
    columns = torch.cat([revived, removed], dim=1)
    half = columns.shape[1] // 2
    usable = mask.gather(1, columns)  # a row may have fewer pruned or kept weights than candidates
    usable[:, :half].logical_not_()
    chosen = step.gather(1, columns)
    joint = gram[columns[:, :, None], columns[:, None, :]]
    joint.mul_(chosen[:, :, None]).mul_(2 * chosen[:, None, :])
    found = losses.gather(1, columns).masked_fill_(~usable, math.inf)
    return _Changes(columns, found, joint), WORTH * (pruned * correlation).sum(dim=1)


def _pairs_of_groups(
    step: Tensor, losses: Tensor, gram: Tensor, mask: Tensor, group: int
) -> tuple[Tensor, Tensor]:
    """The columns of the best swap of each group, for the groups with the best ones; two of [rows, k]."""
    rows, cols = step.shape
    shape = (rows, cols // group, group)
    steps, own, kept = step.view(shape), losses.view(shape), mask.view(shape)
    square = gram.view(cols // group, group, cols // group, group)
    blocks = square.diagonal(dim1=0, dim2=2).permute(2, 0, 1)  # [groups, m, m]
    some = -(-rows // group)  # rows at a time, whose pairs are as many as all weights
    parts = zip(steps.split(some), own.split(some), kept.split(some), strict=True)
    found = [_best_pairs(*part, blocks) for part in parts]
    best, pair = (torch.cat(one) for one in zip(*found, strict=True))
    groups = best.topk(min(CANDIDATES, cols // group), dim=1, largest=False).indices
    pair = pair.gather(1, groups)
    return groups * group + pair // group, groups * group + pair % group


def _best_pairs(steps: Tensor, losses: Tensor, kept: Tensor, blocks: Tensor) -> tuple[Tensor, Tensor]:
    """The smallest sum of a pair's losses in each group, and the pair i m + j; both [rows, groups].

    Args:
        steps: d, [rows, groups, m].
        losses: l, [rows, groups, m].
        kept: the mask, [rows, groups, m].
        blocks: the part of G of each group, [groups, m, m].
    """
    sums = 2 * steps[..., :, None] * steps[..., None, :]
    sums.mul_(blocks).add_(losses[..., :, None]).add_(losses[..., None, :])
    sums.masked_fill_(kept[..., :, None] | ~kept[..., None, :], math.inf)
    best, pair = sums.flatten(2).min(dim=2)
    return best, pair


def _best_swaps(changes: _Changes, worth: Tensor, mask: Tensor, most: Tensor, within: bool) -> Tensor:
    """Make swaps among the candidates, each time the best of a row; changes the mask.

    Args:
        changes: the candidates.
        worth: the least gain of a swap [rows].
        mask: [rows, cols].
        most: maximum number of swaps of each row [rows].
        within: whether only candidates of the same place pair, as those of a group do.

    Returns:
        How many swaps each row made [rows].
    """
    half, device = changes.columns.shape[1] // 2, mask.device
    losses, between = changes.losses, changes.joint[:, :half, half:].clone()
    if within:
        between.masked_fill_(~torch.eye(half, dtype=torch.bool, device=device), math.inf)
    made = torch.zeros(len(mask), dtype=torch.int64, device=device)
    for _ in range(half):
        sums = between + losses[:, :half, None] + losses[:, None, half:]
        change, pair = sums.flatten(1).min(dim=1)
        rows = ((change < -worth) & (made < most)).nonzero().flatten()
        if not len(rows):
            break
        pair = pair[rows]
        for candidate, kept in ((pair // half, True), (half + pair % half, False)):
            mask[rows, changes.columns[rows, candidate]] = kept
            losses[rows] += changes.joint[rows, candidate]
            losses[rows, candidate] = math.inf  # not again before all columns are looked at
        made[rows] += 1
    return made


def _check(weight: Tensor, gram: Tensor, mask: Tensor) -> None:
    if weight.ndim != 2 or gram.shape != (weight.shape[1], weight.shape[1]) or mask.shape != weight.shape:
        raise ValueError(
            "weight [rows, cols] needs a Gram matrix [cols, cols] and a mask [rows, cols]; found"
            f" {tuple(weight.shape)}, {tuple(gram.shape)} and {tuple(mask.shape)}"
        )
    require_finite_weight(weight)
    require_finite_gram(gram)
