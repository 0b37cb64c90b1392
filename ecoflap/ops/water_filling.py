"""ECoFLaP's coarse allocation: a budget of kept weights, shared among groups in proportion to their scores.

Group g keeps min(N_g, floor_g + lambda * S_g) of its N_g weights: floor_g is what the cap on its sparsity
leaves it, and groups that keep all leave the rest of their share to the others (Sung et al. 2024, section
3.2). All arithmetic is on integers and fractions, so totals are exact for any number of weights.
"""

import math
from collections.abc import Sequence
from fractions import Fraction

from ecoflap.ops.checks import require_budget
from ecoflap.ops.rounding import round_to_total

# Reads 0.7 + 0.1 = 0.7999999999999999 as 4/5, and changes no float by more than its rounding error.
LARGEST_DENOMINATOR = 10**9


def water_fill(sizes: Sequence[int], scores: Sequence[float], total: int, cap: float) -> list[int]:
    """Share `total` kept weights among groups: keep_g = min(N_g, floor_g + lambda * S_g).

    lambda is such that the sum is `total` (Sung et al. 2024, section 3.2, solved exactly). Fractions of a
    weight go to the largest remainders (ties: the lowest index). Once every group with a positive score is
    full, the rest goes to the groups with score zero, in proportion to their remaining room.

    Args:
        sizes: weights per group N_g.
        scores: importance per group S_g, finite, 0 or more, not all zero; only their ratios matter.
        total: weights to keep in all groups together.
        cap: largest sparsity of any group, 0 to 1; floor_g = ceil(N_g * (1 - cap)).

    Returns:
        Weights to keep per group, floor_g <= keep_g <= N_g, with sum exactly `total`.

    Raises:
        ValueError: if lengths differ, a score is negative or not finite, all scores are 0, the cap is not in
            0..1, or the floors exceed the total.
    """
    require_budget(sizes, total)
    _check_scores(sizes, scores)
    floors = _floors(sizes, total, cap)
    rooms = [size - floor for size, floor in zip(sizes, floors, strict=True)]
    extras = _fill(rooms, _as_integers(scores), total - sum(floors))
    return [floor + extra for floor, extra in zip(floors, extras, strict=True)]


def proportional(sizes: Sequence[int], total: int) -> list[int]:
    """Share `total` among groups in proportion to their sizes: keep_g = total * N_g / sum(N).

    Uniform sparsity in integers, rounded by largest remainder (ties: the lowest index).

    Args:
        sizes: weights per group N_g.
        total: weights to keep in all groups together, at most sum(sizes).

    Returns:
        Weights to keep per group, at most N_g each, with sum exactly `total`.

    Raises:
        ValueError: if there is no group, a size is negative, or the total is not in 0..sum(sizes).
    """
    require_budget(sizes, total)
    return _share(sizes, total)


def _fill(rooms: Sequence[int], rates: Sequence[int], budget: int) -> list[int]:
    """Fill groups with `budget` at the given rates, in integers: min(room_g, lambda * rate_g)."""
    extras = [0] * len(rooms)
    filling = sorted((g for g, rate in enumerate(rates) if rate), key=lambda g: Fraction(rooms[g], rates[g]))
    flow = sum(rates)
    # Groups fill up in the order of room / rate. Each full group leaves a larger share for the others, so one
    # pass finds all of them.
    while filling and budget * rates[filling[0]] >= rooms[filling[0]] * flow:
        full = filling.pop(0)
        extras[full] = rooms[full]
        budget -= rooms[full]
        flow -= rates[full]
    not_full = sorted(filling) or [g for g, rate in enumerate(rates) if not rate]
    weights = [rates[g] if filling else rooms[g] for g in not_full]
    for g, share in zip(not_full, _share(weights, budget), strict=True):
        extras[g] = share
    return extras


def _share(weights: Sequence[int], total: int) -> list[int]:
    """Split `total` in proportion to integer weights by largest remainder; a zero weight gets nothing."""
    whole = sum(weights) or 1  # no weights share nothing
    exact = [Fraction(total * weight, whole) for weight in weights]
    return round_to_total(exact, [total] * len(weights), total)


def _floors(sizes: Sequence[int], total: int, cap: float) -> list[int]:
    """The fewest weights that each group must keep.

    Raises:
        ValueError: if they alone exceed the total.
    """
    if not 0 <= cap <= 1:
        raise ValueError(f"the cap is the largest sparsity of any group, 0 to 1; found {cap}")
    dense_part = 1 - Fraction(cap).limit_denominator(LARGEST_DENOMINATOR)
    floors = [math.ceil(size * dense_part) for size in sizes]
    if sum(floors) > total:
        target = 1 - total / sum(sizes)
        raise ValueError(
            f"cap {cap:g} makes the groups keep {sum(floors)} weights, but the target sparsity {target:.6g}"
            f" leaves only {total}; raise the cap above the target (target + 0.1 is usual), lower the target,"
            " or allocate uniformly"
        )
    return floors


def _as_integers(scores: Sequence[float]) -> list[int]:
    """Scale scores by the power of two that makes all of them integers, without rounding."""
    exact = [Fraction(float(score)) for score in scores]
    scale = max(score.denominator for score in exact)
    return [int(score * scale) for score in exact]


def _check_scores(sizes: Sequence[int], scores: Sequence[float]) -> None:
    if len(sizes) != len(scores):
        raise ValueError(
            f"every group needs one size and one score; found {len(sizes)} sizes and {len(scores)} scores"
        )
    for index, score in enumerate(scores):
        if not (math.isfinite(score) and score >= 0):
            raise ValueError(
                f"score {index} is {score}; scores must be finite and 0 or more; check the loss on the"
                " calibration data"
            )
    if not any(scores):
        raise ValueError(
            f"all {len(scores)} scores are 0, so there is nothing to allocate by; check the scoring step or"
            " allocate uniformly"
        )
