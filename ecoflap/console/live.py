"""The live lines of a step and its run on a terminal; in a pipe or a file, a line a minute."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, TypeVar

from ecoflap.console.pace import Pace, current_run, times

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

Item = TypeVar("Item")
log = logging.getLogger(__name__)

EVERY = 60.0
"""Seconds between two lines without a terminal."""
BAR = 20  # columns


def shown(items: Iterable[Item], pace: Pace, console: Console) -> Iterator[Item]:
    """Pass items through beneath live lines of the step and the run."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
    from rich.text import Text

    class Lines(Progress):
        """A line of the step, and while it is at work one of the run."""

        def get_renderables(self) -> Iterable[RenderableType]:
            for task in self.tasks:
                task.fields["times"] = times(pace.elapsed(), None if task.finished else pace.left())
            yield self.make_tasks_table(self.tasks)
            run = current_run()
            if run is not None and not self.finished:
                yield Text(run.in_words(pace))

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(BAR),
        MofNCompleteColumn(),
        TextColumn("{task.fields[times]}"),
    )
    # Standard output on the same terminal is printed above the bar; redirected output is left alone.
    with Lines(*columns, console=console, redirect_stdout=sys.stdout.isatty()) as lines:
        task = lines.add_task(pace.description, total=pace.total, times="")
        for item in items:
            yield item
            pace.advance()
            lines.update(task, completed=pace.done)


def logged(items: Iterable[Item], pace: Pace) -> Iterator[Item]:
    """Pass items through, and log a line a minute; the first after one unit, if the rest takes longer."""
    last = pace.start
    for item in items:
        yield item
        pace.advance()
        left, now = pace.left(), time.monotonic()
        first = pace.done == 1 and left is not None and left > EVERY
        if (first or now - last > EVERY) and pace.done != pace.total:
            log.info("%s", pace.in_words())
            last = now
