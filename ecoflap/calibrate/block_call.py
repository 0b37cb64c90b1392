"""The call of a block: what it is given beside the hidden states, and how to run it on others.

Every argument is recorded as it comes and replayed unchanged, without naming it: masks, position biases, rotary embeddings and encoder states
reach each block whatever the release of transformers calls them. Only the hidden states (the first tensor) are replaced from block to block.
"""

from __future__ import annotations

import copy
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

    def hand_over(self, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        """Fill the containers that another call is given with what this one's hold: key-value states that blocks share."""
        known = [*zip(arguments, self.arguments, strict=False), *((value, self.keywords.get(name)) for name, value in keywords.items())]
        for value, held in known:
            if type(value) is type(held) and tensors_in(held) and (state := state_of(snapshot(held))) is not None:
                refill(value, state)

    def without_tensors(self) -> BlockCall:
        """The containers among the arguments alone."""
        return self.changed(lambda value: None if isinstance(value, Tensor | tuple) else value)

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


def snapshot(value: Any, of_tensor: Callable[[Tensor], Tensor] = lambda tensor: tensor) -> Any:
    """The value as it is now: what is put into a container later is not in it.

    Args:
        value: an argument of a block.
        of_tensor: what becomes of each tensor in it; by default they are shared.
    """
    return _snapshot(value, of_tensor, {})


def _snapshot(value: Any, of_tensor: Callable[[Tensor], Tensor], made: dict[int, Any]) -> Any:
    if isinstance(value, Tensor):
        return of_tensor(value)
    if type(value) is tuple:
        return tuple(_snapshot(inner, of_tensor, made) for inner in value)
    state = state_of(value)
    if state is None:
        return value
    if id(value) in made:
        return made[id(value)]
    made[id(value)] = other = copy.copy(value)
    if other is value:  # an enumeration, say
        return value
    inside = {name: _snapshot(inner, of_tensor, made) for name, inner in state.items()}
    refill(other, inside)
    return other


def state_of(value: Any) -> dict[Any, Any] | None:
    """What is in a container: a dict, a list, or an object such as a cache; null for anything else."""
    if isinstance(value, dict):
        return dict(value)
    if isinstance(value, list):
        return dict(enumerate(value))
    if isinstance(value, Tensor | nn.Module) or callable(value):
        return None
    return getattr(value, "__dict__", None)


def refill(value: Any, state: dict[Any, Any]) -> None:
    """Put into a container what another of its kind holds; see ``state_of``."""
    if isinstance(value, list):
        value[:] = state.values()
        return
    inside = value if isinstance(value, dict) else vars(value)
    for name, inner in state.items():  # transformers' outputs are dicts that refuse to be updated
        inside[name] = inner


def tensors_in(value: Any) -> list[Tensor]:
    """Every tensor in an argument of a block."""
    found: list[Tensor] = []

    def see(tensor: Tensor) -> Tensor:
        found.append(tensor)
        return tensor

    snapshot(value, see)
    return found


def same_arguments(one: Any, other: Any) -> bool:
    """Whether two calls, or arguments in them, are the same; modules and functions are if their types are."""
    if isinstance(one, Tensor):
        return isinstance(other, Tensor) and one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, BlockCall):
        return isinstance(other, BlockCall) and same_arguments(vars(one), vars(other))
    if type(one) is not type(other):
        return False
    if isinstance(one, tuple):
        return len(one) == len(other) and all(map(same_arguments, one, other))
    if isinstance(one, int | float | str):
        return bool(one == other)
    state, others = state_of(one), state_of(other)
    if one is other or state is None or others is None:
        return True
    return state.keys() == others.keys() and all(same_arguments(inner, others[name]) for name, inner in state.items())
