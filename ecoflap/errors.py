"""The two errors a person sees: their words are the whole message, no traceback needed."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class UserError(Exception):
    """Something that was asked for can't be done; the message says what was asked, what was found and what to change."""


class NumericalError(Exception):
    """A NaN or an infinity appeared; the message names where."""


def nearest(asked: str, valid: Iterable[str], count: int = 3) -> str:
    """The valid names most like the one asked for, as words for a message."""
    names = list(valid)
    close = get_close_matches(asked, names, n=count, cutoff=0.4)
    shown = close or names[:8]
    return ", ".join(shown) + (", ..." if len(shown) < len(names) and not close else "")
