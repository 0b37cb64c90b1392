"""The two errors a person sees: their words are the whole message, no traceback needed."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class UserError(Exception):
    """Something that was asked for can't be done; the message says what was asked, what was found and what to change."""


class NumericalError(Exception):
    """A NaN or an infinity appeared; the message names where."""


def require_positive(group: str, part: object, *options: str) -> None:
    """Refuse counts below one.

    Args:
        group: the config group, for the message.
        part: the object that holds the options.
        options: their names; null is allowed where it means all.

    Raises:
        UserError: one of them is below one.
    """
    for option in options:
        value = getattr(part, option)
        if value is not None and value < 1:
            raise UserError(f"{group}.{option}={value} must be at least 1")


def nearest(asked: str, valid: Iterable[str], count: int = 3) -> str:
    """The valid names most like the one asked for, as words for a message."""
    names = list(valid)
    close = get_close_matches(asked, names, n=count, cutoff=0.4)
    shown = close or names[:8]
    return ", ".join(shown) + (", ..." if len(shown) < len(names) and not close else "")
