"""Pass a tower without computing it: all that a capture wants of the blocks is the arguments that the model hands to each of them.

A block whose output is its hidden states, beside things that it got and hands on, can be left out of such a pass: the hidden states go through as
they are. A block that makes something for the later ones, as T5's first makes the position bias, is run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any

from torch import Tensor, nn

from ecoflap.calibrate.forwards import with_forwards

Key = int | str
Shortcut = Callable[[tuple[Any, ...], dict[str, Any]], Any]


def shortcut(arguments: tuple[Any, ...], keywords: dict[str, Any], hidden: Key, output: Any) -> Shortcut | None:
    """How to make an output of a block's kind from its inputs alone.

    Args:
        arguments: positional arguments of a call of the block.
        keywords: its keyword arguments.
        hidden: index or keyword of the hidden states among them.
        output: what the block made of them.

    Returns:
        (arguments, keywords) -> output, its hidden states those that came in; null where the block makes more than hidden states.
    """
    given = _given(arguments, keywords)
    first, rest = (output, ()) if isinstance(output, Tensor) else (output[0], output[1:]) if type(output) is tuple and output else (None, ())
    if not isinstance(first, Tensor) or first.shape != given[hidden].shape or first.dtype != given[hidden].dtype:
        return None
    places: list[Key | None] = []  # of each further output among the inputs; null for nothing
    for item in rest:
        place = next((key for key, value in given.items() if value is item), None) if item is not None else None
        if place is None and item is not None:
            return None
        places.append(place)
    whole = isinstance(output, Tensor)

    def pass_through(arguments: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
        given = _given(arguments, keywords)
        return given[hidden] if whole else (given[hidden], *(None if place is None else given[place] for place in places))

    return pass_through


def _given(arguments: tuple[Any, ...], keywords: dict[str, Any]) -> dict[Key, Any]:
    """What a block got, by index or keyword."""
    given: dict[Key, Any] = dict(enumerate(arguments))
    given.update(keywords)
    return given


def taking(shortcuts: Mapping[nn.Module, Shortcut]) -> AbstractContextManager[None]:
    """Let some modules take their shortcuts."""

    def taken(make: Shortcut) -> Callable[..., Any]:
        return lambda *arguments, **keywords: make(arguments, keywords)

    return with_forwards({module: taken(make) for module, make in shortcuts.items()})
