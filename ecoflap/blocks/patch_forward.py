"""Replace the ``forward`` of modules for the duration of a context."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import nn


@contextmanager
def patch_forward(forwards: Mapping[nn.Module, Callable[..., Any]]) -> Iterator[None]:
    """Replace the ``forward`` of some modules, and restore it afterwards; their hooks still run.

    Args:
        forwards: the function to call instead, per module.
    """
    own = {module: module.__dict__["forward"] for module in forwards if "forward" in module.__dict__}
    try:
        for module, forward in forwards.items():
            module.forward = forward
        yield
    finally:
        for module in forwards:
            module.__dict__.pop("forward", None)
            if module in own:  # set on the instance by other code, such as accelerate's hooks
                module.forward = own[module]
