"""The call of a block: what it is given beside the hidden states, and how to run it on others.

Every argument is recorded as it comes and replayed unchanged, without naming it: masks, position biases,
rotary embeddings and encoder states reach each block whatever the release of transformers calls them. Only
the hidden states (the first tensor) are replaced from block to block.
"""

from __future__ import annotations

from collections.abc import Callable, Set
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from ecoflap.blocks.containers import items_of, refill, snapshot, tensors_in
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
        """Run the block on other hidden states [batch, tokens, features] and return its output of the same
        shape.
        """
        arguments, keywords = self.placed(self.arguments, self.keywords, hidden)
        return first_tensor(block(*arguments, **keywords))

    def placed(
        self, arguments: tuple[Any, ...], keywords: dict[str, Any], hidden: Tensor
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Arguments of such a call with other hidden states."""
        if isinstance(self.place, int):
            return (*arguments[: self.place], hidden, *arguments[self.place + 1 :]), keywords
        return arguments, {**keywords, self.place: hidden}

    @property
    def tensors(self) -> list[Tensor]:
        """The tensors that the block gets beside the hidden states, such as the states that a cross-attention
        reads.
        """
        return [value for value in (*self.arguments, *self.keywords.values()) if isinstance(value, Tensor)]

    def hand_over(self, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        """Fill the containers that another call is given with what this one's hold: key-value states that
        blocks share.
        """
        known = [
            *zip(arguments, self.arguments, strict=False),
            *((value, self.keywords.get(name)) for name, value in keywords.items()),
        ]
        for value, held in known:
            refillable = items_of(held) is not None and not isinstance(held, tuple | Set)
            if refillable and type(value) is type(held) and tensors_in(held):
                refill(value, snapshot(held))

    def without_tensors(self) -> BlockCall:
        """The containers among the arguments alone."""
        return self.changed(lambda value: None if isinstance(value, Tensor | tuple) else value)

    def copied(self, of_tensor: Callable[[Tensor], Tensor] = lambda tensor: tensor) -> BlockCall:
        """The same call with copies of the containers among its arguments; see ``snapshot``."""
        arguments, keywords = snapshot((self.arguments, self.keywords), of_tensor)
        return BlockCall(arguments, keywords, self.place)

    def changed(self, change: Callable[[Any], Any]) -> BlockCall:
        """The same call with each of its arguments put through a function."""
        return BlockCall(
            tuple(map(change, self.arguments)),
            {name: change(value) for name, value in self.keywords.items()},
            self.place,
        )


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
    raise UserError(
        "a block was called without any tensor; model.towers names something that is not a list of"
        " transformer blocks"
    )


def first_tensor(output: Any) -> Tensor:
    """A block's hidden states: its output, or the first item of it."""
    return output if isinstance(output, Tensor) else output[0]
