"""Round counts to whole numbers with a given sum."""

import math
from collections.abc import Sequence
from fractions import Fraction

from torch import Tensor

TOLERANCE = 1e-9  # a number this little below a whole one counts as whole


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
        raise ValueError(
            f"asked for a total of {total} from sizes that add up to {sum(sizes)}; valid totals are 0 to"
            f" {sum(sizes)}"
        )
    counts = [min(size, math.floor(wanted)) for wanted, size in zip(exact, sizes, strict=True)]
    by_remainder = sorted(range(len(counts)), key=lambda place: counts[place] - exact[place])
    while (missing := total - sum(counts)) != 0:
        order, one = (by_remainder, 1) if missing > 0 else (by_remainder[::-1], -1)
        movable = [place for place in order if 0 <= counts[place] + one <= sizes[place]]
        for place in movable[: abs(missing)]:
            counts[place] += one
    return counts


def round_in_turn(exact: Tensor, total: int) -> Tensor:
    """Whole numbers next to ``exact`` whose sum is ``total``; each compensates for the rounding before it.

    A run of equal numbers stays even all along: 2.5, 2.5, 2.5, 2.5 becomes 3, 2, 3, 2, where
    ``round_to_total`` makes it 3, 3, 2, 2.

    Args:
        exact: wanted numbers, each at least 0: [numbers], fp64.
        total: the sum of ``exact``, rounded down or up.

    Returns:
        Each number rounded down or up, [numbers], int64.

    Raises:
        ValueError: if the total is another number.
    """
    floors = (exact + TOLERANCE).floor()
    sums = (exact - floors).clamp(min=0).cumsum(0)
    up, to_round_up = float(sums[-1]), total - int(floors.sum())
    if not up - 1 < to_round_up < up + 1:
        raise ValueError(f"numbers with the sum {float(exact.sum())} can't be rounded to the sum {total}")
    # floor(sums + offset) rises by one at each number that is rounded up, and ends at their number.
    offset = 0.5
    if math.floor(up + offset) != to_round_up:
        part = up - math.floor(up)
        offset = (1 - part) / 2 if part >= 0.5 else 1 - part / 2
    steps = (sums + offset).floor()
    return (floors + steps.diff(prepend=steps.new_zeros(1))).long()
