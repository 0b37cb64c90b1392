"""Masks with exact counts: the result of a stable ascending sort, without the sort.

A metric ranks the weights, and the lowest are pruned. Among equal scores the lowest index is pruned first, so
a count is met exactly however many scores tie; dead input columns and zero weights make ties common. One rule
serves matrices, rows and n:m groups: find the largest pruned score, prune everything strictly below it, and
fill the rest of the count with the first entries equal to it.

Throughout, True in a mask means that the weight is kept.
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

Pattern = Literal["row", "matrix"] | tuple[int, int]
"""Which weights of a matrix compete: those of each row, all, or (n, m) for n of every m columns of a row."""

Keep = int | Tensor
"""How many weights of a matrix are kept: in all of its rows together, or in each, [rows] int64 on the CPU."""

PARTITIONED = 2**20  # scores per partition on the CPU
LARGEST_COMPARED = 8  # largest n:m group, in columns, of which all pairs are compared


def select(metric: Tensor, keep: Keep, pattern: Pattern) -> Tensor:
    """Keep the highest scores under a pattern: `select_in_rows`, `select_in_matrix` or `select_n_of_m`.

    Args:
        metric: scores [rows, cols].
        keep: number of weights to keep; ignored for a pattern (n, m). Counts of rows need no pattern:
            `select_by_row`.
        pattern: which weights compete.
    """
    if isinstance(keep, Tensor):
        return select_by_row(metric, keep)
    if isinstance(pattern, tuple):
        return select_n_of_m(metric, *pattern)
    return select_in_rows(metric, keep) if pattern == "row" else select_in_matrix(metric, keep)


def select_in_matrix(metric: Tensor, keep: int) -> Tensor:
    """Keep the `keep` highest scores of the whole matrix.

    The selection of magnitude pruning, |W_ij| against one threshold per layer (Han et al. 2015), and of
    SparseGPT within a block of columns (Frantar and Alistarh 2023, algorithm 1).

    Args:
        metric: scores [rows, cols], any real dtype; infinities are ordinary scores.
        keep: number of weights to keep, 0 to rows * cols.

    Returns:
        Boolean mask [rows, cols] with exactly `keep` True entries.

    Raises:
        ValueError: if the metric is not a matrix or holds NaN, or `keep` is out of range.
    """
    _check_metric(metric)
    check_keep(metric.shape, keep)
    if keep < metric.numel() and not metric.is_contiguous() and metric.t().is_contiguous():
        # Stored column by column. The order of the scores matters only for ties.
        scores = metric.t().reshape(1, -1)
        above = scores > _order_statistic(scores, metric.numel() - keep)
        if int(above.count_nonzero()) == keep:
            return above.view(metric.t().shape).t()
    return _keep_highest(metric.reshape(1, -1), metric.numel() - keep).reshape(metric.shape)


def select_in_rows(metric: Tensor, keep: int) -> Tensor:
    """Keep the highest scores of each row, `keep` in total; the rows' counts differ by at most one.

    Every row keeps keep // rows weights. The remaining keep % rows go, one each, to the rows whose best
    pruned score is highest (ties: lowest row). Without a remainder this is Wanda's comparison group, the
    output row (Sun et al. 2024, section 3).

    Args:
        metric: scores [rows, cols], any real dtype; infinities are ordinary scores.
        keep: number of weights of the whole matrix to keep, 0 to rows * cols.

    Returns:
        Boolean mask [rows, cols] with exactly `keep` True entries.

    Raises:
        ValueError: if the metric is not a matrix or holds NaN, or `keep` is out of range.
    """
    _check_metric(metric)
    check_keep(metric.shape, keep)
    rows, cols = metric.shape
    each, extra = divmod(keep, rows)
    return _keep_highest(metric, cols - each, spared_groups=extra)


def select_by_row(metric: Tensor, keep: Tensor) -> Tensor:
    """Keep the highest scores of each row, as many as the row's count.

    Args:
        metric: scores [rows, cols], any real dtype; infinities are ordinary scores.
        keep: number of weights of each row to keep, 0 to cols: [rows] int64.

    Returns:
        Boolean mask [rows, cols]; each row has exactly its count of True entries.

    Raises:
        ValueError: if the metric is not a matrix or holds NaN, or a count is missing or out of range.
    """
    _check_metric(metric)
    check_keep(metric.shape, keep)
    return _keep_highest(metric, (metric.shape[1] - keep).unsqueeze(1).to(metric.device))


def select_n_of_m(metric: Tensor, n: int, m: int) -> Tensor:
    """Keep the n highest scores in every m consecutive columns of each row.

    The n:m pattern that sparse tensor cores accelerate, such as 2:4 (Mishra et al. 2021).

    Args:
        metric: scores [rows, cols], any real dtype; infinities are ordinary scores.
        n: weights kept per group, 1 to m.
        m: columns per group; divides cols.

    Returns:
        Boolean mask [rows, cols] with exactly rows * cols * n / m True entries.

    Raises:
        ValueError: if the metric is not a matrix or holds NaN, n is not in 1..m, or m does not divide cols.
    """
    _check_metric(metric)
    check_n_of_m(metric.shape[1], n, m)
    return keep_n_of_m(metric, n, m)


def keep_n_of_m(metric: Tensor, n: int, m: int) -> Tensor:
    """`select_n_of_m` without its checks, for a solve that calls it once per group of columns.

    A weight's rank in its group is the number of others that it beats. Small groups compare every pair of
    their columns, in a number of operations that does not depend on the size of the matrix; large groups
    select by order statistic.
    """
    if m > LARGEST_COMPARED:
        return _keep_highest(metric.reshape(-1, m), m - n).reshape(metric.shape)
    # [m, groups] in contiguous memory: each comparison streams two rows.
    columns = metric.reshape(-1, m).t().contiguous()
    ranks = torch.zeros(columns.shape, dtype=torch.uint8, device=metric.device)
    for later in range(1, m):
        wins = columns[later] >= columns[:later]  # of two equal scores the earlier is pruned first
        ranks[later] += wins.sum(dim=0, dtype=torch.uint8)
        ranks[:later] += ~wins
    return (ranks >= m - n).t().reshape(metric.shape)


def check_n_of_m(cols: int, n: int, m: int) -> None:
    """Refuse an n:m pattern that is invalid or does not fit a matrix.

    Args:
        cols: columns of the matrix.
        n: weights kept per group.
        m: columns per group.

    Raises:
        ValueError: if n is not in 1..m, or m does not divide cols.
    """
    if not 0 < n <= m:
        raise ValueError(
            f"asked to keep {n} of every {m} columns; n must be between 1 and m (2:4 and 4:8 are usual)"
        )
    if cols % m:
        raise ValueError(
            f"asked for groups of {m} columns in a matrix of {cols} columns, which leaves {cols % m} over; m"
            f" must divide {cols}"
        )


def _keep_highest(scores: Tensor, prune: int | Tensor, spared_groups: int = 0) -> Tensor:
    """Prune the `prune` lowest scores of each group, and one fewer in some groups.

    Args:
        scores: [groups, items].
        prune: items to prune per group, at least 1 when groups are spared; or those of each, [groups, 1].
        spared_groups: number of groups that prune one item fewer; those whose threshold is highest are
            chosen.

    Returns:
        Boolean mask [groups, items], True for the items that are kept.
    """
    if isinstance(prune, Tensor):
        threshold, pruned = _order_statistics(scores, prune.clamp(min=1)), int(prune.sum())
    elif prune == 0:
        return torch.ones_like(scores, dtype=torch.bool)
    else:
        threshold, pruned = _order_statistic(scores, prune), len(scores) * prune
    above = scores > threshold
    # No group has more scores above its threshold than it keeps. If the total is met, each group's count is,
    # and no tie has to be broken.
    if not spared_groups and int(above.count_nonzero()) == scores.numel() - pruned:
        return above
    below = scores < threshold
    ties_to_prune = prune - below.sum(dim=1, keepdim=True)
    if spared_groups:
        # At least one pruned item equals the threshold, so one fewer tie is still a valid count.
        ties_to_prune[threshold.flatten().sort(descending=True, stable=True).indices[:spared_groups]] -= 1
    ties = scores == threshold
    return ~(below | (ties & (ties.cumsum(dim=1, dtype=torch.int32) <= ties_to_prune)))


def _order_statistic(scores: Tensor, rank: int) -> Tensor:
    """The rank-th smallest score of each group, [groups, 1], from scores [groups, items]; ranks begin at 1.

    Uses `topk` from the nearer end, because `kthvalue` on CUDA is not allowed under
    torch.use_deterministic_algorithms. On the CPU NumPy's vectorised quickselect takes less than half the
    time.
    """
    if scores.device.type == "cpu" and scores.dtype in (torch.float32, torch.float64):
        parts = scores.split(max(1, PARTITIONED // scores.shape[1]))  # their copies fit in the CPU's cache
        ranked = (np.partition(part.numpy(), rank - 1, axis=1)[:, rank - 1 : rank] for part in parts)
        return torch.cat([torch.from_numpy(values.copy()) for values in ranked])
    from_top = scores.shape[1] - rank + 1
    if rank <= from_top:
        return scores.topk(rank, dim=1, largest=False, sorted=False).values.amax(dim=1, keepdim=True)
    return scores.topk(from_top, dim=1, sorted=False).values.amin(dim=1, keepdim=True)


def _order_statistics(scores: Tensor, ranks: Tensor) -> Tensor:
    """The smallest score of each group that has its own rank [groups, 1], from scores [groups, items]."""
    if scores.device.type == "cpu" and scores.dtype in (torch.float32, torch.float64):
        return torch.from_numpy(np.sort(scores.numpy(), axis=1)).gather(1, ranks - 1)  # vectorised
    return scores.sort(dim=1).values.gather(1, ranks - 1)


def _check_metric(metric: Tensor) -> None:
    if metric.ndim != 2 or metric.numel() == 0:
        raise ValueError(
            f"a metric must be a non-empty matrix [rows, cols]; found shape {tuple(metric.shape)}"
        )
    if metric.amax().isnan():  # the maximum of anything with NaN is NaN; cheaper than testing each score
        raise ValueError(
            f"{int(metric.isnan().sum())} of {metric.numel()} scores are NaN; check the weight and the"
            " calibration statistics for NaN"
        )


def check_keep(shape: Sequence[int], keep: Keep) -> None:
    """Refuse counts that a matrix [rows, cols] can't have.

    Raises:
        ValueError: if a count is out of range, or there is not one for each row.
    """
    rows, cols = shape
    if isinstance(keep, Tensor):
        if keep.shape != (rows,) or int(keep.min()) < 0 or int(keep.max()) > cols:
            raise ValueError(
                f"asked to keep {int(keep.min())} to {int(keep.max())} weights of each of {len(keep)} rows;"
                f" the matrix has {rows} rows of {cols}"
            )
    elif not 0 <= keep <= rows * cols:
        raise ValueError(
            f"asked to keep {keep} weights of a {(rows, cols)} matrix; valid counts are 0 to {rows * cols}"
        )
