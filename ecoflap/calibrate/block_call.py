"""The call of a block: what it is given beside the hidden states, and how to run it on others.

Every argument is recorded as it comes and replayed unchanged, without naming it: masks, position biases, rotary embeddings and encoder states
reach each block whatever the release of transformers calls them. Only the hidden states (the first tensor) are replaced from block to block.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ecoflap.errors import UserError


@dataclass(frozen=True)
class BlockCall:
    """The arguments of one call of a block, its hidden states taken out.

    Attributes:
        arguments: positional arguments.
        keywords: keyword arguments.
        place: index or keyword of the hidden states.
    """

    arguments: tuple[Any, ...]
    keywords: dict[str, Any]
    place: int | str

    def run(self, block: nn.Module, hidden: Tensor) -> Tensor:
        """Run the block on other hidden states [batch, tokens, features] and return its output of the same shape."""
        arguments, keywords = self.placed(self.arguments, self.keywords, hidden)
        return first_tensor(block(*arguments, **keywords))

    def placed(self, arguments: tuple[Any, ...], keywords: dict[str, Any], hidden: Tensor) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Arguments of such a call with other hidden states."""
        if isinstance(self.place, int):
            return (*arguments[: self.place], hidden, *arguments[self.place + 1 :]), keywords
        return arguments, {**keywords, self.place: hidden}

    @property
    def tensors(self) -> list[Tensor]:
        """The tensors that the block gets beside the hidden states, such as the states that a cross-attention reads."""
        return [value for value in (*self.arguments, *self.keywords.values()) if isinstance(value, Tensor)]

    def changed(self, change: Callable[[Any], Any]) -> BlockCall:
        """The same call with each of its arguments put through a function."""
        return BlockCall(tuple(map(change, self.arguments)), {name: change(value) for name, value in self.keywords.items()}, self.place)


def take_out_hidden(arguments: tuple[Any, ...], keywords: dict[str, Any]) -> tuple[BlockCall, Tensor]:
    """The call of a block apart from the hidden states that it was given.

    Raises:
        UserError: it was given none.
    """
    for index, value in enumerate(arguments):
        if isinstance(value, Tensor):
            return BlockCall((*arguments[:index], None, *arguments[index + 1 :]), keywords, index), value
    for name, value in keywords.items():
        if isinstance(value, Tensor):
            return BlockCall(arguments, {**keywords, name: None}, name), value
    raise UserError("a block was called without any tensor; model.towers names something that is not a list of transformer blocks")


def first_tensor(output: Any) -> Tensor:
    """A block's hidden states: its output, or the first item of it."""
    return output if isinstance(output, Tensor) else output[0]


def same_arguments(one: Any, other: Any) -> bool:
    """Whether two calls, or the arguments in them, are the same; objects that hold no tensors are not looked into."""
    if isinstance(one, Tensor):
        return isinstance(other, Tensor) and torch.equal(one, other)
    if isinstance(one, BlockCall):
        return same_arguments((one.arguments, one.keywords, one.place), (other.arguments, other.keywords, other.place))
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same_arguments(value, other[name]) for name, value in one.items())
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same_arguments, one, other))
    return type(one) is type(other)
