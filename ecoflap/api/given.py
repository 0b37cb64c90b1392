"""Refuse arguments that another step makes, where something else was given."""

from __future__ import annotations

from typing import Any

from ecoflap.errors import UserError


def require(value: Any, kind: type, made_by: str) -> None:
    """Refuse an argument that isn't what a step makes.

    Args:
        value: what was given.
        kind: what is needed.
        made_by: what makes one, such as ``ecoflap.load(...)``.

    Raises:
        UserError: if the value is of another kind.
    """
    if isinstance(value, type) or not isinstance(value, kind):
        given = getattr(value, "__name__", None) or type(value).__name__
        raise UserError(f"{given} was given where a {kind.__name__} is needed; give what {made_by} returns")
