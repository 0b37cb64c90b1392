"""The call of a block: its arguments beside the hidden states, and how to run it on other hidden states.

Every argument is recorded as it comes and replayed unchanged, without naming it: masks, position biases,
rotary embeddings and encoder states reach each block whatever a release of transformers calls them. Only the
hidden states (the first tensor) are replaced from block to block.
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
    """The arguments of one call of a block, without its hidden states.

    Attributes:
        arguments: positional arguments.
        keywords: keyword arguments.
        key: index or keyword of the hidden states, whose entry is None.
    """

    arguments: tuple[Any, ...]
    keywords: dict[str, Any]
    key: int | str

    def run(self, block: nn.Module, hidden: Tensor) -> Tensor:
        """Run a block on hidden states [batch, tokens, features]; returns its hidden states, same shape."""
        arguments, keywords = self.with_hidden(self.arguments, self.keywords, hidden)
        return first_tensor(block(*arguments, **keywords))

    def with_hidden(
        self, arguments: tuple[Any, ...], keywords: dict[str, Any], hidden: Tensor
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments of such a call with other hidden states."""
        if isinstance(self.key, int):
            return (*arguments[: self.key], hidden, *arguments[self.key + 1 :]), keywords
        return arguments, {**keywords, self.key: hidden}

    @property
    def tensors(self) -> list[Tensor]:
        """The tensors beside the hidden states, such as the states that a cross-attention reads."""
        return [value for value in (*self.arguments, *self.keywords.values()) if isinstance(value, Tensor)]

    def fill_containers(self, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        """Copy the contents of this call's containers into those of another call.

        These are the containers by which blocks share state, such as key-value caches.
        """
        pairs = [
            *zip(arguments, self.arguments, strict=False),
            *((value, self.keywords.get(name)) for name, value in keywords.items()),
        ]
        for target, source in pairs:
            refillable = items_of(source) is not None and not isinstance(source, tuple | Set)
            if refillable and type(target) is type(source) and tensors_in(source):
                refill(target, snapshot(source))

    def containers_only(self) -> BlockCall:
        """The same call without its tensors and tuples."""
        return self.mapped(lambda value: None if isinstance(value, Tensor | tuple) else value)

    def copied(self, of_tensor: Callable[[Tensor], Tensor] = lambda tensor: tensor) -> BlockCall:
        """The same call with copies of the containers among its arguments; see ``snapshot``."""
        arguments, keywords = snapshot((self.arguments, self.keywords), of_tensor)
        return BlockCall(arguments, keywords, self.key)

    def mapped(self, change: Callable[[Any], Any]) -> BlockCall:
        """The same call with ``change`` applied to each of its arguments."""
        return BlockCall(
            tuple(map(change, self.arguments)),
            {name: change(value) for name, value in self.keywords.items()},
            self.key,
        )


def extract_hidden(arguments: tuple[Any, ...], keywords: dict[str, Any]) -> tuple[BlockCall, Tensor]:
    """Split the arguments of a block into the call and the hidden states [batch, tokens, features].

    Raises:
        UserError: if there is no tensor among the arguments.
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
    """The hidden states that a block returned: its output, or the first item of it.

    Raises:
        UserError: if neither is a tensor.
    """
    try:
        first = output if isinstance(output, Tensor) else output[0]
    except (LookupError, TypeError):
        first = None
    if not isinstance(first, Tensor):
        raise UserError(
            f"a block returned a {type(output).__name__}, and its hidden states must be a tensor of their own"
            " or the first item of a tuple; change what its forward returns"
        )
    return first
