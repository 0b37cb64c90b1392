"""Hooks of modules and parameters, for as long as a context lasts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager

from torch.utils.hooks import RemovableHandle


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
