"""What several of these functions refuse in their arguments, each with a ``ValueError``."""

from collections.abc import Sequence

import torch
from torch import Tensor


def require_finite_weight(weight: Tensor) -> None:
    """Refuse a weight with an entry that is NaN or infinite, which a solve would spread over its row."""
    _require_finite(weight, "weights", "check the checkpoint and its dtype")


def require_finite_gram(gram: Tensor, name: str = "Gram matrix") -> None:
    """Refuse a Gram matrix, or a Hessian, with an entry that is NaN or infinite."""
    advice = "check the layer's calibration inputs and accumulate in fp32"
    _require_finite(gram, f"entries of the {name}", advice)


def require_square(matrix: Tensor, name: str) -> None:
    """Refuse what is not a square matrix, or is empty."""
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or matrix.numel() == 0:
        raise ValueError(f"a {name} must be a square matrix [cols, cols]; found shape {tuple(matrix.shape)}")


def require_columns(weight: Tensor, matrix: Tensor, name: str) -> None:
    """Refuse a weight that does not have the columns of a square matrix, such as "an inverse"."""
    if weight.ndim != 2 or matrix.shape != (weight.shape[1], weight.shape[1]):
        raise ValueError(
            f"weight [rows, cols] needs {name} [cols, cols]; found {tuple(weight.shape)} and"
            f" {tuple(matrix.shape)}"
        )


def require_mean_square(weight: Tensor, mean_square: Tensor) -> None:
    """Refuse statistics that do not have one entry per column of a weight."""
    if weight.ndim != 2 or mean_square.shape != weight.shape[1:]:
        raise ValueError(
            f"weight [rows, cols] needs mean_square [cols]; found {tuple(weight.shape)} and"
            f" {tuple(mean_square.shape)}"
        )


def require_budget(sizes: Sequence[int], total: int) -> None:
    """Refuse no groups, groups of negative sizes, and a total that they can't keep."""
    if not sizes or min(sizes) < 0:
        raise ValueError(f"need at least one group and no negative size; found sizes {list(sizes)}")
    if not 0 <= total <= sum(sizes):
        raise ValueError(
            f"asked to keep {total} weights, but the groups hold {sum(sizes)}; valid totals are 0 to"
            f" {sum(sizes)}"
        )


def _require_finite(values: Tensor, name: str, advice: str) -> None:
    if not torch.stack(torch.aminmax(values)).isfinite().all():  # one pass over the values
        raise ValueError(
            f"{int((~values.isfinite()).sum())} of {values.numel()} {name} are NaN or infinite; {advice}"
        )
