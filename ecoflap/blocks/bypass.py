"""Bypass a block: hand its hidden states through, or put known ones in their place, without computing it.

A block whose output is its hidden states, beside things that it got and hands on, can be bypassed. A block
that makes something for the later ones, as T5's first makes the position bias, is run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from ecoflap.blocks.patch_forward import patch_forward

Key = int | str
SubstituteForward = Callable[[tuple[Any, ...], dict[str, Any]], Any]


@dataclass(frozen=True)
class Bypass:
    """How to make an output of a block's kind from its inputs alone.

    Attributes:
        hidden: index or keyword of the hidden states among the inputs.
        rest: index or keyword of each further output among the inputs, null for none; null where the output
            is a tensor.
    """

    hidden: Key
    rest: tuple[Key | None, ...] | None

    def __call__(self, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
        """The output whose hidden states are those that came in."""
        return self.changed(lambda hidden: hidden)(arguments, keywords)

    def changed(self, change: Callable[[Tensor], Tensor]) -> SubstituteForward:
        """(arguments, keywords) -> output, whose hidden states are made from those that came in."""

        def make(arguments: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
            given = _given(arguments, keywords)
            hidden = change(given[self.hidden])
            if self.rest is None:
                return hidden
            return (hidden, *(None if place is None else given[place] for place in self.rest))

        return make


def find_bypass(
    arguments: tuple[Any, ...], keywords: dict[str, Any], hidden: Key, output: Any
) -> Bypass | None:
    """How to bypass a block.

    Args:
        arguments: positional arguments of a call of the block.
        keywords: its keyword arguments.
        hidden: index or keyword of the hidden states among them.
        output: what the block made of them.

    Returns:
        Null where the block makes more than hidden states.
    """
    given = _given(arguments, keywords)
    first, rest = (
        (output, ())
        if isinstance(output, Tensor)
        else (output[0], output[1:])
        if type(output) is tuple and output
        else (None, ())
    )
    if (
        not isinstance(first, Tensor)
        or first.shape != given[hidden].shape
        or first.dtype != given[hidden].dtype
    ):
        return None
    places: list[Key | None] = []
    for item in rest:
        place = (
            next((key for key, value in given.items() if value is item), None) if item is not None else None
        )
        if place is None and item is not None:
            return None
        places.append(place)
    return Bypass(hidden, None if isinstance(output, Tensor) else tuple(places))


def _given(arguments: tuple[Any, ...], keywords: dict[str, Any]) -> dict[Key, Any]:
    """What a block got, by index or keyword."""
    given: dict[Key, Any] = dict(enumerate(arguments))
    given.update(keywords)
    return given


def taking(bypasses: Mapping[nn.Module, SubstituteForward]) -> AbstractContextManager[None]:
    """Let some modules be bypassed."""

    def taken(make: SubstituteForward) -> Callable[..., Any]:
        return lambda *arguments, **keywords: make(arguments, keywords)

    return patch_forward({module: taken(make) for module, make in bypasses.items()})


def without_head(module: nn.Module) -> dict[nn.Module, SubstituteForward]:
    """Leave out the product with the vocabulary, where a model has one: what the loss is doesn't matter to a
    capture.
    """
    find = getattr(module, "get_output_embeddings", None)
    head = find() if find is not None else None
    if not isinstance(head, nn.Linear):
        return {}
    return {
        head: lambda arguments, _: (
            arguments[0].new_zeros(()).expand(*arguments[0].shape[:-1], head.out_features)
        )
    }
