"""How fast a step and a run proceed: the time that they have taken, and what is left."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field


@dataclass
class Pace:
    """The pace of a loop of equal units.

    Attributes:
        description: what the loop does.
        total: number of units; None if unknown.
        done: units that are done.
        start: when it began, in seconds of a monotonic clock.
        last: when the last unit was done.
    """

    description: str
    total: int | None
    done: int = 0
    start: float = field(default_factory=lambda: time.monotonic())
    last: float = field(default_factory=lambda: time.monotonic())

    def advance(self) -> None:
        """Count one unit more."""
        self.done, self.last = self.done + 1, time.monotonic()

    def elapsed(self) -> float:
        """Seconds since it began."""
        return time.monotonic() - self.start

    def left(self) -> float | None:
        """Seconds that the rest will take at the mean pace so far; None before the first unit is done."""
        if not self.done or self.total is None:
            return None
        each = (self.last - self.start) / self.done
        return max(each * (self.total - self.done) - (time.monotonic() - self.last), 0.0)

    def in_words(self) -> str:
        """Such as ``score: 12 of 960, 2 min 05 s elapsed, about 2 h 40 min left``."""
        of = "" if self.total is None else f" of {self.total}"
        return f"{self.description}: {self.done}{of}, {times(self.elapsed(), self.left())}"


@dataclass
class RunPace:
    """The pace of a run.

    Attributes:
        start: when it began, in seconds of a monotonic clock.
        to_come: {step that is still to come: seconds, as far as they are known}.
    """

    start: float = field(default_factory=lambda: time.monotonic())
    to_come: dict[str, float] = field(default_factory=dict)

    def in_words(self, step: Pace) -> str:
        """The time of the run, and what is known of the rest: of this step and of steps to come."""
        left = step.left()
        rest = None if left is None else left + sum(self.to_come.values())
        return "run: " + times(time.monotonic() - self.start, rest, "at least")


def times(elapsed: float, left: float | None, about: str = "about") -> str:
    """The time that something has taken and the time left, in words."""
    rest = "" if left is None else f", {about} {seconds_in_words(left)} left"
    return f"{seconds_in_words(elapsed)} elapsed{rest}"


def seconds_in_words(seconds: float) -> str:
    """A time as a person says it: 9 s, 2 min 05 s, 3 h 20 min."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


_runs: list[RunPace] = []


@contextmanager
def run_pace() -> Iterator[RunPace]:
    """Measure a run in this context."""
    _runs.append(RunPace())
    try:
        yield _runs[-1]
    finally:
        _runs.pop()


def current_run() -> RunPace | None:
    """The run that is at work; None outside of one."""
    return _runs[-1] if _runs else None
