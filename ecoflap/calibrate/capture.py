"""Capture the inputs of a tower's blocks, and replay one block at a time on them.

Every argument is recorded as it comes and replayed unchanged, without naming it: masks, position biases, rotary embeddings and encoder states
reach each block whatever the release of transformers calls them. Only the hidden states (the first tensor) are replaced from block to block.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ecoflap.errors import UserError
from ecoflap.models.prunable import Batch, PrunableModel
from ecoflap.models.towers import Block, Tower


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
        arguments, keywords = list(self.arguments), dict(self.keywords)
        if isinstance(self.place, int):
            arguments[self.place] = hidden
        else:
            keywords[self.place] = hidden
        return first_tensor(block(*arguments, **keywords))


@dataclass
class Stream:
    """One pass of one batch through a tower.

    Attributes:
        hidden: what goes into the block whose turn it is, [batch, tokens, features].
        calls: the other arguments of each block.
    """

    hidden: Tensor
    calls: list[BlockCall]

    @property
    def samples(self) -> int:
        """Number of samples in the batch."""
        return self.hidden.shape[0]


class _Captured(BaseException):
    """Ends a forward pass after the tower; no model code can mistake it for an error of its own."""


def first_tensor(output: Any) -> Tensor:
    """A block's hidden states: its output, or the first item of it."""
    return output if isinstance(output, Tensor) else output[0]


def _take_out_hidden(arguments: tuple[Any, ...], keywords: dict[str, Any]) -> tuple[BlockCall, Tensor]:
    for index, value in enumerate(arguments):
        if isinstance(value, Tensor):
            return BlockCall((*arguments[:index], None, *arguments[index + 1 :]), keywords, index), value
    for name, value in keywords.items():
        if isinstance(value, Tensor):
            return BlockCall(arguments, {**keywords, name: None}, name), value
    raise UserError("a block was called without any tensor; model.towers names something that is not a list of transformer blocks")


@torch.no_grad()
def capture(model: PrunableModel, tower: Tower, batches: Sequence[Batch]) -> list[Stream]:
    """Run each batch up to the end of a tower, through the model as it is now, and record what its blocks are called with.

    Raises:
        UserError: the forward pass never reaches the tower.
    """
    return [_capture_batch(model, tower, batch) for batch in batches]


def _capture_batch(model: PrunableModel, tower: Tower, batch: Batch) -> Stream:
    calls: list[BlockCall] = []
    inputs: list[Tensor] = []

    def record(_: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        call, hidden = _take_out_hidden(arguments, keywords)
        if not calls:
            inputs.append(hidden)
        calls.append(call)
        if len(calls) == len(tower.blocks):
            raise _Captured

    handles = [block.module.register_forward_pre_hook(record, with_kwargs=True) for block in tower.blocks]
    try:
        model.loss(batch)
    except _Captured:
        return Stream(inputs[0], calls)
    finally:
        for handle in handles:
            handle.remove()
    raise UserError(
        f"the calibration data never reach all blocks of tower {tower.name} ({tower.path}): {len(calls)} of {len(tower.blocks)} were called"
    )


@torch.no_grad()
def advance(block: Block, index: int, streams: Sequence[Stream]) -> None:
    """Replace each stream's hidden states by the block's output on them."""
    for stream in streams:
        stream.hidden = stream.calls[index].run(block.module, stream.hidden)
