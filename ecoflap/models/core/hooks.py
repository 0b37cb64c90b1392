"""Hooks of modules and parameters, and context variables, for as long as a context lasts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

from torch.utils.hooks import RemovableHandle

Value = TypeVar("Value")


@contextmanager
def hooks(handles: Iterable[RemovableHandle]) -> Iterator[None]:
    """Remove these hooks when the context ends.

    Args:
        handles: of the hooks. A generator registers them as the context begins; if it fails, those that it
            registered are removed.
    """
    with ExitStack() as registered:
        for handle in handles:
            registered.enter_context(handle)
        yield


@contextmanager
def setting(variable: ContextVar[Any], value: Value) -> Iterator[Value]:
    """Set a context variable until the context ends; yields the value."""
    token = variable.set(value)
    try:
        yield value
    finally:
        variable.reset(token)
