"""The allocation map of OWL, DLP, LSA, NeuronAL and ATP: the share that a group keeps is affine in its value.

The papers give every group the share 1 - s + 2 lambda (u_g - mean of u), with u_g the group's value scaled to
0..1. That meets the target sparsity s if all groups have one size and no share leaves 0..1. Here the shift
that all groups share is solved for instead, over weights rather than groups, so that totals are exact for any
sizes and any lambda. All arithmetic is on fractions.
"""

import math
from bisect import bisect_right
from collections.abc import Sequence
from fractions import Fraction

from ecoflap.ops.checks import require_budget
from ecoflap.ops.rounding import round_to_total


def ramp(sizes: Sequence[int], values: Sequence[float], total: int, spread: float) -> list[int]:
    """Share `total` kept weights among groups: keep_g = N_g clip(a + 2 lambda u_g, 0, 1).

    u_g = (v_g - min v) / (max v - min v), or 0 if all values are equal; a is such that the sum is `total`.
    For groups of one size, and without clipping, this is the published map (OWL, Yin et al. 2024).

    Args:
        sizes: weights per group N_g.
        values: v_g, finite; groups of higher values keep a larger share.
        total: weights to keep in all groups together.
        spread: lambda, half of the difference between the largest and the smallest share.

    Returns:
        Weights to keep per group, at most N_g each, with sum exactly `total`.

    Raises:
        ValueError: if lengths differ, a value or the spread is not finite, or the total is not in 0..sum(N).
    """
    _check(sizes, values, total)
    if not math.isfinite(spread):
        raise ValueError(f"the spread is {spread}; it must be finite")
    exact = [Fraction(value) for value in values]
    lowest, width = min(exact), max(exact) - min(exact)
    if not width:
        return _shift(sizes, [Fraction(0)] * len(sizes), total)
    return _shift(sizes, [2 * Fraction(spread) * (value - lowest) / width for value in exact], total)


def shift_to_total(sizes: Sequence[int], shares: Sequence[float], total: int) -> list[int]:
    """Shift all shares by one number until the counts add up: keep_g = N_g clip(a + share_g, 0, 1).

    Args:
        sizes: weights per group N_g.
        shares: of its weights that each group keeps, up to the shift; finite.
        total: weights to keep in all groups together.

    Returns:
        Weights to keep per group, at most N_g each, with sum exactly `total`. Fractions of a weight go to the
        largest remainders (ties: the lowest index).

    Raises:
        ValueError: if lengths differ, a share is not finite, or the total is not in 0..sum(N).
    """
    _check(sizes, shares, total)
    return _shift(sizes, [Fraction(share) for share in shares], total)


def _shift(sizes: Sequence[int], shares: Sequence[Fraction], total: int) -> list[int]:
    """``shift_to_total`` on fractions."""

    def kept(shift: Fraction) -> list[Fraction]:
        return [
            size * min(max(shift + share, Fraction(0)), Fraction(1))
            for size, share in zip(sizes, shares, strict=True)
        ]

    # What is kept grows with the shift, from nothing to everything, linearly between the shifts at which some
    # group becomes empty or full.
    ends = sorted({end for share in shares for end in (-share, 1 - share)})
    after = bisect_right(
        ends, Fraction(total), lo=1, hi=len(ends) - 1, key=lambda end: sum(kept(end), Fraction(0))
    )
    low, high = ends[after - 1], ends[after]
    below, above = sum(kept(low), Fraction(0)), sum(kept(high), Fraction(0))
    shift = low + (high - low) * (total - below) / (above - below) if above > below else low
    return round_to_total(kept(shift), sizes, total)


def _check(sizes: Sequence[int], values: Sequence[float], total: int) -> None:
    require_budget(sizes, total)
    if len(sizes) != len(values):
        raise ValueError(
            f"every group needs one size and one value; found {len(sizes)} sizes and {len(values)} values"
        )
    for index, value in enumerate(values):
        if not math.isfinite(value):
            raise ValueError(f"value {index} is {value}; values must be finite")
