"""How a process of a command starts and ends."""

from __future__ import annotations

import atexit
import gc
from functools import cache

ALLOCATIONS = 10_000
"""Objects to make between two collections. Python's own 700 spends an eighth of a short run on collecting."""


@cache
def collect_less_garbage() -> None:
    """Look for garbage less often than Python does by default, and not again at exit.

    Importing torch, transformers and a model makes a million objects that stay. Every collection walks over
    some of them, and those at exit over all, so that a short run takes a third longer than it has to.
    """
    gc.set_threshold(ALLOCATIONS)
    atexit.register(gc.freeze)  # frozen objects are left to the end of the process
