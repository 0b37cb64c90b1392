"""The tail of a weight matrix's spectrum: the exponent of a power law that fits its largest eigenvalues."""

import math

import torch
from torch import Tensor

BINS = 100


def eigenvalues(weight: Tensor) -> Tensor:
    """The positive eigenvalues of W^T W in ascending order, [at most min(rows, cols)], fp64 on the CPU.

    Args:
        weight: [rows, cols], any floating dtype; its singular values are computed in fp32.
    """
    found = torch.linalg.svdvals(weight.float()).cpu().double().square().flip(0)
    return found[found > 0]


def tail_exponent(ascending: Tensor, tail: str) -> float:
    """The exponent alpha of a power law x^-alpha for the eigenvalues x_1 <= ... <= x_m from x_1 on.

    alpha = 1 + m / sum_k ln(x_k / x_1), Hill's estimator. ``tail`` decides where the tail begins: in the
    middle of the spectrum, or near the peak of its density where the Kolmogorov-Smirnov distance
    max_k |1 - (x_k / x_1)^(1 - alpha) - (k - 1) / m| is smallest (Lu et al. 2024, AlphaPruning).

    Args:
        ascending: positive eigenvalues in ascending order, [count], on the CPU.
        tail: ``peak`` or ``median``.

    Returns:
        alpha; NaN where fewer than two different eigenvalues leave nothing to fit.
    """
    if len(ascending) < 2 or ascending[0] == ascending[-1]:
        return math.nan
    if tail == "median":
        return _fit(ascending, len(ascending) // 2)[0]
    fits = [_fit(ascending, start) for start in _starts_near_peak(ascending)]
    return min(fits, key=lambda fit: fit[1])[0]


def _fit(ascending: Tensor, start: int) -> tuple[float, float]:
    """The exponent and the Kolmogorov-Smirnov distance of the tail that begins at an index."""
    ratio = ascending[start:] / ascending[start]
    count, logarithms = len(ratio), float(ratio.log().sum())
    if not logarithms:
        return math.inf, 1.0
    alpha = 1 + count / logarithms
    below = torch.arange(count, dtype=ratio.dtype) / count
    return alpha, float((1 - ratio ** (1 - alpha) - below).abs().max())


def _starts_near_peak(ascending: Tensor) -> range:
    """The indices at which a tail may begin: up to 1.5 times the left edge of the fullest bin.

    The bins are even in log10. The authors also bound it from below, but compare an eigenvalue with the
    logarithm of 0.95 times that edge; so does this, as their published results depend on it. All indices are
    allowed where none is near, as in a spectrum of more than 17 decades.
    """
    logarithms = ascending.log10()
    low, high = float(logarithms[0]), float(logarithms[-1])
    counts = torch.histc(logarithms.float(), BINS, low, high)
    edge = 10 ** (low + (high - low) * int(counts.argmax()) / BINS)
    allowed = (ascending[:-1] >= math.log10(0.95 * edge)) & (ascending[:-1] <= 1.5 * edge)
    indices = allowed.nonzero().flatten()
    return range(int(indices[0]), int(indices[-1]) + 1) if len(indices) else range(len(ascending) - 1)
