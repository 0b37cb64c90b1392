"""Numbers as tables show them: a few digits, and all of those before the point."""

from __future__ import annotations

import math

MILLION = 1e6
"""From here on, numbers have exponents."""


def figure(value: float | None, digits: int = 4) -> str:
    """A number with four digits, zeros among them, or all that it has before its point; empty for None."""
    if value is None:
        return ""
    return f"{value:.0f}" if _is_whole(value, digits) else f"{value:#.{digits}g}".rstrip(".")


def short(value: float | None, sign: str = "-") -> str:
    """A number with at most three digits, or all that it has before its point; empty for None."""
    if value is None:
        return ""
    return f"{value:{sign}.0f}" if _is_whole(value, 3) else f"{value:{sign}.3g}"


def signed(value: float) -> str:
    """A difference with its sign, else as a short number; NaN has no sign."""
    return short(value) if math.isnan(value) else short(value, "+")


def with_deviation(mean: float, deviation: float) -> str:
    """``mean ± standard deviation``, with as many decimals of both; the mean alone if it isn't finite."""
    shown = figure(mean)
    if not math.isfinite(mean):
        return shown
    if "e" in shown:
        return f"{shown} ± {deviation:.2g}"
    return f"{shown} ± {deviation:.{_decimals(shown)}f}"


def with_interval(mean: float, half: float) -> str:
    """``difference ± half of its interval``, with as many decimals of both."""
    shown = figure(half, 2)
    if "e" in shown:
        return f"{signed(mean)} ± {half:.2g}"
    return f"{mean:+.{_decimals(shown)}f} ± {shown}"


def _is_whole(value: float, digits: int) -> bool:
    """Whether that many digits would leave out some before the point."""
    return 10**digits - 0.5 <= abs(value) < MILLION


def _decimals(shown: str) -> int:
    return len(shown.partition(".")[2])
