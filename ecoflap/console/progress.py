"""Console output: a live progress line, log lines that do not break it, and aligned tables.

Bars and log lines share one console on stderr; tables go to stdout, so that they can be piped. Without a
terminal there are no bars, but a line a minute.
"""

from __future__ import annotations

import argparse
import logging
import shutil
import sys
import textwrap
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any, NoReturn, TextIO, TypeVar

from ecoflap.console.live import logged, shown
from ecoflap.console.pace import Pace

if TYPE_CHECKING:
    from rich.console import Console

Item = TypeVar("Item")

UNBOUNDED = 10_000
"""Columns of a table in a file or a pipe, where rich would assume 80 and fold the cells."""


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
        for watcher in _watchers:
            watcher(description, done, total)
        yield item


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Print an aligned table to stdout: numbers right-aligned, floats with four decimals, None as a dash.

    Args:
        title: Heading above the table.
        columns: Heading of each column.
        rows: One cell per column.
    """
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    cells = [list(row) for row in rows]
    grid = Table(box=SIMPLE_HEAD)
    for index, column in enumerate(columns):
        numeric = all(_is_number(row[index]) for row in cells)
        grid.add_column(Text(column), justify="right" if numeric else "left", overflow="fold")
    for row in cells:
        grid.add_row(*(Text(_cell(value)) for value in row))
    console = Console(width=None if sys.stdout.isatty() else UNBOUNDED)
    with console.capture() as drawn:
        console.print(Text(title, style="bold"))  # a title of the grid would be wrapped to the grid's width
        console.print(grid)
    text = drawn.get()
    if not sys.stdout.isatty():  # no cell is padded at the end of a line
        text = "\n".join(line.rstrip() for line in text.split("\n"))
    print(text, end="")


def _is_number(value: Any) -> bool:
    """Whether a cell is a number, a text such as 57,344, or empty."""
    return isinstance(value, int | float | None) or str(value).replace(",", "").isdecimal()


def _cell(value: Any) -> str:
    """One cell as text."""
    if value is None:
        return "-"
    return f"{value:.4f}" if isinstance(value, float) else str(value)


class ArgumentParser(argparse.ArgumentParser):
    """argparse's parser, with help that fits the terminal, and an error message instead of the usage."""

    def __init__(self, *, description: str | None = None, **options: Any) -> None:
        """Begin without arguments.

        Args:
            description: paragraphs, which fill the lines, and indented lines.
            options: those of argparse.
        """
        super().__init__(
            description=description and paragraphs(description),
            formatter_class=argparse.RawDescriptionHelpFormatter,
            **options,
        )

    def error(self, message: str) -> NoReturn:
        """Print what is wrong, and exit with 2."""
        self.exit(complain(f"{message}; {self.prog} --help shows the usage"))


def complain(message: object) -> int:
    """Print a one-line error to stderr; returns the exit code of wrong usage."""
    print(wrapped(f"error: {' '.join(str(message).split())}", sys.stderr), file=sys.stderr)
    return 2


def wrapped(text: str, stream: TextIO) -> str:
    """Break lines between words where they are longer than the terminal; elsewhere they stay whole.

    Continued lines are indented. Paths and commands without spaces are not broken.

    Args:
        text: the lines.
        stream: where they will be printed.
    """
    if not stream.isatty():
        return text
    width = shutil.get_terminal_size().columns
    return "\n".join(_broken(line, width) if len(line) > width else line for line in text.split("\n"))


def paragraphs(text: str) -> str:
    """Text for stdout whose paragraphs fill the lines of the terminal; indented lines stay on their own."""
    width = shutil.get_terminal_size().columns
    return "\n\n".join(
        wrapped(part, sys.stdout)
        if part.startswith(" ")
        else textwrap.fill(" ".join(part.split()), width, break_long_words=False, break_on_hyphens=False)
        for part in text.strip("\n").split("\n\n")
    )


def _broken(line: str, width: int) -> str:
    """A line broken between words; what follows is indented two columns deeper."""
    deeper = " " * (len(line) - len(line.lstrip()) + 2)
    return textwrap.fill(
        line, width, subsequent_indent=deeper, break_long_words=False, break_on_hyphens=False
    )


def install_logging(level: int | str = logging.INFO) -> None:
    """Send log lines through the shared console, so that they appear above a live bar.

    Plain console handlers of the root logger are replaced, or each line would be printed twice; file handlers
    and their levels are left alone.

    Args:
        level: Lowest level to print, as ``logging`` takes it.
    """
    root = logging.getLogger()
    for handler in list(root.handlers):
        if type(handler) is logging.StreamHandler or isinstance(handler, ConsoleHandler):
            root.removeHandler(handler)
    console = ConsoleHandler(level)
    root.addHandler(console)
    # Never raised, because a file handler may log more than the console.
    root.setLevel(min(root.level, console.level))


class ConsoleHandler(logging.Handler):
    """Prints the message alone for INFO and ``level: message`` for everything else."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print one record on the shared console, broken between words if at all, and without markup."""
        try:
            prefix = "" if record.levelno == logging.INFO else f"{record.levelname.lower()}: "
            text = wrapped(prefix + self.format(record), sys.stderr)
            shared_console().print(text, markup=False, highlight=False, soft_wrap=True)
        except Exception:
            # As in all of logging, a line that can't be printed must not stop the program.
            self.handleError(record)
