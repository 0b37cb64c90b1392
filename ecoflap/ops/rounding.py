"""Round counts to whole numbers with a given sum."""

import math
from collections.abc import Sequence
from fractions import Fraction


def round_to_total(exact: Sequence[float | Fraction], sizes: Sequence[int], total: int) -> list[int]:
    """Whole numbers next to ``exact`` whose sum is ``total``, by largest remainder (ties: the lowest index).

    Args:
        exact: wanted numbers, each at least 0.
        sizes: the largest number of each.
        total: their sum, from 0 to the sum of the sizes.

    Raises:
        ValueError: if no numbers have this sum.
    """
    if not 0 <= total <= sum(sizes):
        raise ValueError(f"no numbers of at most {sum(sizes)} in all have the sum {total}")
    counts = [min(size, math.floor(wanted)) for wanted, size in zip(exact, sizes, strict=True)]
    by_remainder = sorted(range(len(counts)), key=lambda place: counts[place] - exact[place])
    while (missing := total - sum(counts)) != 0:
        order, one = (by_remainder, 1) if missing > 0 else (by_remainder[::-1], -1)
        movable = [place for place in order if 0 <= counts[place] + one <= sizes[place]]
        for place in movable[: abs(missing)]:
            counts[place] += one
    return counts
