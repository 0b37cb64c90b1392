"""Log lines on the console, which do not break a live progress line."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from ecoflap.console.progress import shared_console
from ecoflap.console.wrapping import wrapped


def install_logging() -> None:
    """Send log lines of INFO and above through the shared console, so that they appear above a live bar.

    Plain console handlers of the root logger are replaced, or each line would be printed twice; file handlers
    and their levels are left alone.
    """
    root = logging.getLogger()
    for handler in list(root.handlers):
        if type(handler) is logging.StreamHandler or isinstance(handler, ConsoleHandler):
            root.removeHandler(handler)
    console = ConsoleHandler(logging.INFO)
    root.addHandler(console)
    # Never raised, because a file handler may log more than the console.
    root.setLevel(min(root.level, console.level))


@contextmanager
def silenced(level: int) -> Iterator[None]:
    """Drop log lines of this level and below in a context, those of libraries too."""
    before = logging.root.manager.disable
    logging.disable(level)
    try:
        yield
    finally:
        logging.disable(before)


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
