"""Live progress lines on stderr, and loops that report how far they are.

Without a terminal there are no live lines, but a line a minute.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, TypeVar

from ecoflap.console.live import logged, shown
from ecoflap.console.pace import Pace

if TYPE_CHECKING:
    from rich.console import Console

Item = TypeVar("Item")


@cache
def shared_console() -> Console:
    """The console of all bars and log lines; it looks up ``sys.stderr`` at every write."""
    from rich.console import Console

    return Console(stderr=True)


Watcher = Callable[[str, int, int | None], None]
_watchers: list[Watcher] = []
_quiet = False


@contextmanager
def watching(watcher: Watcher) -> Iterator[None]:
    """Call ``watcher`` with the progress of every tracked loop in this context.

    Args:
        watcher: takes the description of a loop, the items done, and their total or None.
    """
    _watchers.append(watcher)
    try:
        yield
    finally:
        _watchers.remove(watcher)


def begun(step: str) -> None:
    """Call the watchers with a step that begins, and may have no loop to track."""
    _call_watchers(step, 0, None)


def _call_watchers(description: str, done: int, total: int | None) -> None:
    for watcher in _watchers:
        watcher(description, done, total)


@contextmanager
def quiet() -> Iterator[None]:
    """Show no live lines in this context: of the processes of one run, the first one alone does."""
    global _quiet
    _quiet = True
    try:
        yield
    finally:
        _quiet = False


def track(iterable: Iterable[Item], description: str, total: int | None = None) -> Iterator[Item]:
    """Pass items through, show live lines of the time elapsed and left, and call the watchers.

    Args:
        iterable: The items.
        description: What is being done, at the start of the line.
        total: Number of items; by default ``len(iterable)`` if it has one, otherwise unknown.

    Yields:
        The items, unchanged. If stderr is not a terminal, a line a minute is logged.
    """
    size = len(iterable) if total is None and isinstance(iterable, Sized) else total
    items, pace = _watched(iterable, description, size), Pace(description, size)
    if _quiet or not sys.stderr.isatty() or shared_console().is_dumb_terminal:
        yield from logged(items, pace)
    else:
        yield from shown(items, pace, shared_console())


def _watched(iterable: Iterable[Item], description: str, total: int | None) -> Iterator[Item]:
    for done, item in enumerate(iterable):
        _call_watchers(description, done, total)
        yield item
