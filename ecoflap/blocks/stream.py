"""The stream of a batch: its hidden states between blocks, and the arguments of the blocks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ecoflap.blocks.activations import OffloadedTensor
from ecoflap.blocks.block_call import BlockCall
from ecoflap.blocks.recorder import BlockInput, BlockOutput
from ecoflap.models.offload.placement import Placement

LARGE = 2**20  # bytes; smaller arguments are not offloaded


class Stream:
    """One pass of a batch through a tower.

    A batch that a model sends through the tower several times (texts alone, then with images) has several.

    Attributes:
        block: the index of the next block to run.
        counted: masks of the real tokens, [batch, tokens], of the sequence and of parts that some layers read
            alone; empty where all tokens are real.
        kinds: the kinds of the tokens; None if the loss doesn't declare them.
        finite: whether no hidden state is NaN or infinite.
        offloaded: the hidden states in their storage.
    """

    def __init__(
        self, first: BlockInput, calls: Mapping[int, BlockCall], placement: Placement, writes: bool = False
    ) -> None:
        """Begin at the first block.

        Args:
            first: the input of the first block.
            calls: the other arguments of the blocks, by index, as far as they are known.
            placement: where to store the hidden states, and arguments that are as large.
            writes: whether blocks write to tensors among their arguments, so that they need copies.
        """
        self.block, self.counted, self.kinds = 0, first.counted, first.kinds
        self._placement, self._writes = placement, writes
        self._calls = offload_calls(calls, placement)
        self._recaptured: dict[int, BlockCall] = {}
        self._call_left: BlockCall | None = None
        self.hidden = first.hidden

    def call(self, index: int) -> BlockCall:
        """The arguments of a block beside the hidden states; containers are copies that it may write into."""
        call = self._recaptured[index] if index in self._recaptured else self._calls[index]
        call = call.mapped(lambda value: value.read() if isinstance(value, OffloadedTensor) else value)
        return call.copied(torch.clone) if self._writes else call.copied()

    @property
    def hidden(self) -> Tensor:
        """The hidden states that enter the next block, [batch, tokens, features]."""
        return self.offloaded.read().clone() if self._writes else self.offloaded.read()

    @hidden.setter
    def hidden(self, hidden: Tensor) -> None:
        self.finite = bool(torch.isfinite(hidden).all())
        vars(self).pop("offloaded", None)  # what entered the block makes room for what leaves it
        self.offloaded = OffloadedTensor(hidden, self._placement)

    def enter(self, index: int, given: BlockInput) -> None:
        """Replace the input of a block by one that a forward pass captured."""
        self.block, self.hidden = index, given.hidden
        self.counted, self.kinds = given.counted, given.kinds
        self._recaptured = offload_calls({index: given.call}, self._placement)

    def pass_through(self, block: nn.Module) -> None:
        """Run the next block, and proceed to the one behind it."""
        call = self.call(self.block)
        self.leave(call.run(block, self.hidden), call)

    def leave(self, output: Tensor, call: BlockCall) -> None:
        """Proceed to the next block.

        Args:
            output: the hidden states that the block returned, [batch, tokens, features].
            call: its other arguments, with what it wrote into them.
        """
        self.block, self.hidden, self._call_left = self.block + 1, output, call.containers_only()

    @property
    def last_output(self) -> BlockOutput:
        """What the block before left."""
        assert self._call_left is not None
        return BlockOutput(self.hidden, self._call_left)


def offload_calls(calls: Mapping[int, BlockCall], placement: Placement) -> dict[int, BlockCall]:
    """Offload large arguments, such as position biases and encoder states; shared ones are stored once.

    Args:
        calls: the arguments of blocks, by index.
        placement: where to store them.
    """
    if placement.kind == "none":
        return dict(calls)
    stored: dict[int, OffloadedTensor] = {}

    def offload(value: Any) -> Any:
        if not isinstance(value, Tensor) or value.nbytes < LARGE:
            return value
        if id(value) not in stored:
            stored[id(value)] = OffloadedTensor(value, placement)
        return stored[id(value)]

    return {index: call.mapped(offload) for index, call in calls.items()}
