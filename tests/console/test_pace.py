"""Times elapsed and left: their arithmetic, and the lines in a pipe."""

from __future__ import annotations

import logging
import time
from types import SimpleNamespace

import pytest

from ecoflap.console import live, pace
from ecoflap.console.pace import Pace, RunPace, seconds_in_words
from ecoflap.console.progress import track


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A clock that stands still until it is set."""
    now = SimpleNamespace(seconds=1000.0)
    fake = SimpleNamespace(monotonic=lambda: now.seconds, time=time.time)
    monkeypatch.setattr(pace, "time", fake)
    monkeypatch.setattr(live, "time", fake)
    return now


def test_time_left_where_a_unit_takes_longer_than_a_minute(clock: SimpleNamespace) -> None:
    step = Pace("score", 4, start=clock.seconds, last=clock.seconds)
    assert step.left() is None  # nothing is known before the first unit
    clock.seconds += 100
    step.advance()
    assert step.left() == 300
    clock.seconds += 40  # within the second unit, the time left falls
    assert step.left() == 260
    assert step.in_words() == "score: 1 of 4, 2 min 20 s elapsed, about 4 min 20 s left"
    clock.seconds += 1000  # a unit that takes longer than those before it
    assert step.left() == 0
    assert Pace("search", None, done=3).left() is None


def test_a_run_counts_what_is_to_come(clock: SimpleNamespace) -> None:
    run = RunPace(start=clock.seconds - 10)
    step = Pace("prune", 2, start=clock.seconds, last=clock.seconds)
    assert run.in_words(step) == "run: 10 s elapsed"
    clock.seconds += 5
    step.advance()
    run.to_come["evaluate"] = 60.0
    assert run.in_words(step) == "run: 15 s elapsed, at least 1 min 05 s left"


@pytest.mark.parametrize(("unit", "lines"), [(1, [1, 62, 123]), (90, [1, 2, 3]), (0.1, [])])
def test_a_line_a_minute_in_a_pipe(
    clock: SimpleNamespace, caplog: pytest.LogCaptureFixture, unit: float, lines: list[int]
) -> None:
    count = 150 if unit < 60 else 4
    with caplog.at_level(logging.INFO):
        for _ in track(range(count), "score"):
            clock.seconds += unit
    said = [int(message.split()[1]) for message in caplog.messages]
    assert said == lines  # the first at once if more than a minute is left
    assert all(" left" in message for message in caplog.messages)


@pytest.mark.parametrize(
    ("seconds", "words"), [(0.4, "0 s"), (59.9, "59 s"), (65, "1 min 05 s"), (12000, "3 h 20 min")]
)
def test_words(seconds: float, words: str) -> None:
    assert seconds_in_words(seconds) == words
