"""The mean of paired differences, and its 95 % interval by Student's t."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ecoflap.sweeps.report.cells import statistics

STUDENT = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365, 9: 2.306, 10: 2.262}
"""{number of differences: the 97.5 % quantile of Student's t with one degree of freedom less}."""
NORMAL = 1.959964  # the quantile of the normal distribution
ROUNDING = 1e-9  # the relative difference below which two numbers differ by rounding only, with a margin


def difference(figure: float, other: float) -> float:
    """The difference of two figures; exactly zero if they differ by rounding only."""
    return 0.0 if figure != other and math.isclose(figure, other, rel_tol=ROUNDING) else figure - other


def mean_difference(differences: Sequence[float]) -> float:
    """The mean difference; exactly zero if the differences cancel but for rounding."""
    mean = statistics(differences)[0]
    cancelled = math.isfinite(mean) and abs(mean) <= ROUNDING * max(map(abs, differences))
    return 0.0 if cancelled else mean


def interval(differences: Sequence[float]) -> float | None:
    """Half the width of the 95 % interval of the mean difference (Student's t); None if it has none.

    That is where there are fewer than two differences, one is not a finite number, or all are the same.
    """
    deviation = statistics(differences)[1]
    if deviation is None or not deviation > ROUNDING * max(map(abs, differences)):
        return None
    return student(len(differences)) * deviation / math.sqrt(len(differences))


def student(count: int) -> float:
    """The 97.5 % quantile of Student's t for a number of differences of at least two.

    Beyond ten, by its expansion in one over the degrees of freedom (Abramowitz and Stegun, 26.7.5).
    """
    if count in STUDENT:
        return STUDENT[count]
    z, freedom = NORMAL, count - 1
    first = (z**3 + z) / (4 * freedom)
    second = (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * freedom**3)
    return z + first + second + third
