"""Bypass a block: return its hidden states unchanged, or known ones instead, without computing it.

A block can be bypassed if its output is hidden states beside objects that it received as arguments. A block
that makes something for later ones, as T5's first block makes the position bias, has to run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from ecoflap.blocks.patch_forward import patch_forward
from ecoflap.models.core.layers import read_by

Key = int | str
SubstituteForward = Callable[[tuple[Any, ...], dict[str, Any]], Any]


@dataclass(frozen=True)
class Bypass:
    """How to build a block's output from its arguments alone.

    Attributes:
        hidden: index or keyword of the hidden states among the arguments.
        rest: index or keyword of the argument that each further output equals, None where that output is
            None; None altogether where the block returns a tensor instead of a tuple.
        copies: return a copy of hidden states that stay unchanged, because the model writes into some.
    """

    hidden: Key
    rest: tuple[Key | None, ...] | None
    copies: bool = False

    def __call__(self, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
        """The output with the hidden states that came in."""
        return self.substitute(lambda hidden: hidden)(arguments, keywords)

    def substitute(self, change: Callable[[Tensor], Tensor]) -> SubstituteForward:
        """A function (arguments, keywords) -> output that applies ``change`` to the hidden states."""

        def forward(arguments: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
            given = dict(enumerate(arguments)) | keywords
            hidden = change(given[self.hidden])
            if self.copies and hidden is given[self.hidden]:
                hidden = hidden.clone()
            if self.rest is None:
                return hidden
            return (hidden, *(None if key is None else given[key] for key in self.rest))

        return forward


def find_bypass(
    arguments: tuple[Any, ...], keywords: dict[str, Any], hidden: Key, output: Any
) -> Bypass | None:
    """Find how to bypass a block from one call of it.

    Args:
        arguments: positional arguments of the call.
        keywords: its keyword arguments.
        hidden: index or keyword of the hidden states among them.
        output: what the block returned.

    Returns:
        The bypass, or None if the block makes more than hidden states.
    """
    given = dict(enumerate(arguments)) | keywords
    outputs = (output,) if isinstance(output, Tensor) else output
    if type(outputs) is not tuple or not outputs or not isinstance(outputs[0], Tensor):
        return None
    first, *rest = outputs
    if (first.shape, first.dtype) != (given[hidden].shape, given[hidden].dtype):
        return None
    keys: list[Key | None] = []
    for item in rest:
        key = next((key for key, value in given.items() if value is item), None) if item is not None else None
        if key is None and item is not None:
            return None
        keys.append(key)
    return Bypass(hidden, None if isinstance(output, Tensor) else tuple(keys))


def bypassing(bypasses: Mapping[nn.Module, SubstituteForward]) -> AbstractContextManager[None]:
    """Bypass some modules for the duration of a context."""

    def adapt(substitute: SubstituteForward) -> Callable[..., Any]:
        return lambda *arguments, **keywords: substitute(arguments, keywords)

    return patch_forward({module: adapt(substitute) for module, substitute in bypasses.items()})


def without_head(module: nn.Module) -> dict[nn.Module, SubstituteForward]:
    """A bypass of the output projection to the vocabulary, if a model has one.

    A capture does not need the loss, so the logits may be zeros.
    """
    find = getattr(module, "get_output_embeddings", None)
    head = find() if find is not None else None
    if not isinstance(head, nn.Linear):
        return {}

    def zeros(arguments: tuple[Any, ...], keywords: dict[str, Any]) -> Tensor:
        inputs = read_by(arguments, keywords)
        return inputs.new_zeros(()).expand(*inputs.shape[:-1], head.out_features)

    return {head: zeros}
