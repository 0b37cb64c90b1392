"""Estimates of time, against work whose time is known."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from ecoflap.console.progress import track
from ecoflap.data.calibration_set import CalibrationSet
from ecoflap.run.steps import timing

SAMPLES = CalibrationSet("samples", [{"x": torch.zeros(1)}] * 128)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    now = SimpleNamespace(seconds=0.0)
    monkeypatch.setattr(timing, "time", SimpleNamespace(perf_counter=lambda: now.seconds))
    return now


@pytest.mark.parametrize(("fixed", "each"), [(3.0, 0.25), (0.0, 0.5), (2.0, 0.0)])
def test_a_fixed_part_and_a_part_per_sample_are_told_apart(
    clock: SimpleNamespace, fixed: float, each: float
) -> None:
    def work(samples: CalibrationSet) -> None:
        clock.seconds += fixed + each * len(samples)

    found = timing._extrapolated(work, SAMPLES, 16)
    assert found == timing.Estimate(pytest.approx(fixed + 128 * each))  # type: ignore[arg-type]
    assert clock.seconds == pytest.approx(2 * fixed + 17 * each)  # one sample and one batch were run


def test_what_takes_too_long_stops_and_is_an_upper_bound(clock: SimpleNamespace) -> None:
    def work(samples: CalibrationSet) -> None:
        for _ in track(range(100), "solve"):
            clock.seconds += 25.0

    found = timing._extrapolated(work, SAMPLES, 16)
    assert found == timing.Estimate(100 * 25.0 * 128, at_most=True)
    assert clock.seconds == 75.0  # three units of a hundred


def test_an_evaluation_is_its_first_batch_times_their_number(clock: SimpleNamespace) -> None:
    asked: list[int] = []

    def compute(batch: list[int]) -> list[int]:
        clock.seconds += 2.0
        asked.extend(batch)
        return batch

    seconds = timing._seconds(lambda: timing.FirstBatch().run([[1, 2], [3, 4], [5]], compute))
    assert (seconds, asked) == (6.0, [1, 2])
