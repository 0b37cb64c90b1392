"""Estimates of time, against work whose time is known."""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace

import pytest
import torch

from ecoflap.console.progress import track
from ecoflap.data.calibration_set import CalibrationSet
from ecoflap.errors import UserError
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

    assert timing._extrapolated(work, SAMPLES, 16) == pytest.approx(fixed + 128 * each)
    assert clock.seconds == pytest.approx(2 * fixed + 18 * each)  # two samples and one batch were run


@pytest.mark.parametrize(
    ("batch", "asked"), [(1, [1, 2]), (2, [2, 4]), (3, [2, 4]), (64, [2, 64]), (128, [128])]
)
def test_two_numbers_of_samples_are_run_in_batches_of_two_at_least(
    clock: SimpleNamespace, batch: int, asked: list[int]
) -> None:
    seen: list[int] = []

    def work(samples: CalibrationSet) -> None:
        seen.append(len(samples))
        clock.seconds += 2.0 + 0.5 * len(samples)

    assert timing._extrapolated(work, SAMPLES, batch) == 2.0 + 0.5 * 128
    assert seen == asked


def test_what_refuses_the_first_samples_runs_all(clock: SimpleNamespace) -> None:
    def work(samples: CalibrationSet, least: int) -> None:
        if len(samples) < least:
            raise UserError("no picture")
        clock.seconds += 2.0

    assert timing._extrapolated(partial(work, least=100), SAMPLES, 16) == 2.0
    with pytest.raises(UserError, match="no picture"):
        timing._extrapolated(partial(work, least=200), SAMPLES, 16)


def test_passes_over_a_part_of_the_samples_do_not_grow_with_them(clock: SimpleNamespace) -> None:
    """Ten passes over 32 samples, and two over all of them."""

    def passes(samples: int) -> float:
        return 10 * min(samples, 32) + 2 * samples

    def work(samples: CalibrationSet) -> None:
        clock.seconds += 3.0 + 0.25 * passes(len(samples))

    assert timing._extrapolated(work, SAMPLES, 16, passes) == pytest.approx(3.0 + 0.25 * (320 + 256))
    assert timing._extrapolated(work, SAMPLES, 64, passes) == pytest.approx(3.0 + 0.25 * (320 + 256))
    assert timing._extrapolated(work, SAMPLES, 16, lambda samples: 1.0) == pytest.approx(3.0 + 0.25 * 24)


def test_what_takes_too_long_goes_by_the_units_that_are_done(clock: SimpleNamespace) -> None:
    def work(samples: CalibrationSet) -> None:
        for step in track(range(100), "solve"):
            clock.seconds += 5.0 + 0.5 * len(samples) + (30.0 if step == 0 else 0.0)

    assert timing._extrapolated(work, SAMPLES, 16) == pytest.approx(30.0 + 100 * (5.0 + 0.5 * 128))
    assert clock.seconds == pytest.approx(2 * 30.0 + 2 * (6.0 + 13.0))  # two of a hundred units, twice


def test_a_loop_inside_the_first_unit_of_another_stops_nothing(clock: SimpleNamespace) -> None:
    def work() -> None:
        for step in track(range(10), "allocate"):
            for _ in track(range(30 if step == 0 else 2), "statistics"):
                clock.seconds += 3.0

    assert timing._seconds(work) == 90.0 + 9 * 6.0
    assert clock.seconds == 96.0


def test_a_loop_that_has_ended_stops_nothing(clock: SimpleNamespace) -> None:
    def work() -> None:
        for loop, each in (("statistics", 1.0), ("prune", 4.0)):
            for _ in track(range(10), loop):
                clock.seconds += each

    assert timing._seconds(work) == 50.0
    assert clock.seconds == 22.0


def test_an_evaluation_is_its_first_batch_times_their_number(clock: SimpleNamespace) -> None:
    asked: list[int] = []

    def compute(batch: list[int]) -> list[int]:
        clock.seconds += 2.0
        asked.extend(batch)
        return batch

    seconds = timing._seconds(lambda: timing.FirstBatch().run([[1, 2], [3, 4], [5]], compute))
    assert (seconds, asked) == (6.0, [1, 2])
