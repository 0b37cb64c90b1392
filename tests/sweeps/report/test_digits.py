"""Digits of the numbers in tables."""

from __future__ import annotations

import math

import pytest

from ecoflap.sweeps.report.digits import figure, short, signed, with_deviation, with_interval


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (97.0, "97.00"),
        (100.0, "100.0"),
        (0.25, "0.2500"),
        (1234.0, "1234"),
        (9999.4, "9999"),
        (9999.7, "10000"),
        (-38640.2, "-38640"),
        (999999.4, "999999"),
        (1234567.0, "1.235e+06"),
        (0.0, "0.000"),
        (math.inf, "inf"),
        (None, ""),
    ],
)
def test_figures_have_four_digits(value: float | None, shown: str) -> None:
    assert figure(value) == shown


@pytest.mark.parametrize(
    ("mean", "deviation", "shown"),
    [
        (89.0, 1.0, "89.00 ± 1.00"),
        (96.03, 0.0, "96.03 ± 0.00"),
        (1234.0, 56.7, "1234 ± 57"),
        (38640.0, 789.0, "38640 ± 789"),
        (1234567.0, 789.0, "1.235e+06 ± 7.9e+02"),
        (math.nan, math.nan, "nan"),
    ],
)
def test_deviations_have_the_decimals_of_their_mean(mean: float, deviation: float, shown: str) -> None:
    assert with_deviation(mean, deviation) == shown


@pytest.mark.parametrize(
    ("mean", "half", "shown"),
    [
        (0.25, None, "+0.25"),
        (0.0, None, "+0"),
        (-8315.4, None, "-8315"),
        (1234567.0, None, "+1.23e+06"),
        (2.345, 0.96, "+2.35 ± 0.96"),
        (-18.2, 15.3, "-18 ± 15"),
        (-8315.4, 121.7, "-8315 ± 122"),
        (1.5, 99.6, "+2 ± 100"),
        (0.0, 1234567.0, "+0 ± 1.2e+06"),
    ],
)
def test_differences_have_the_decimals_of_their_interval(mean: float, half: float | None, shown: str) -> None:
    assert (signed(mean) if half is None else with_interval(mean, half)) == shown


def test_seconds_have_three_digits() -> None:
    shown = {None: "", 0.0146: "0.0146", 1.0: "1", 5.757: "5.76", 77.46: "77.5", 1092.4: "1092"}
    assert {seconds: short(seconds) for seconds in shown} == shown
