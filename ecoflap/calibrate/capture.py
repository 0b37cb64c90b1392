"""Capture the inputs of a tower's blocks, and replay one block at a time on them.

Where a model changes the hidden states between two blocks, so that a block's output is not the next one's input, each block's inputs are
captured anew by a forward pass through the pruned blocks before it. Elsewhere the blocks themselves are left out of all forward passes but the
first: what is wanted of them is their arguments.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn

from ecoflap.calibrate.activations import Waiting
from ecoflap.calibrate.block_call import BlockCall, same_arguments
from ecoflap.calibrate.passed import Passages, Passed
from ecoflap.calibrate.recorder import Captured, Recorder
from ecoflap.calibrate.shortcut import Shortcut, taking
from ecoflap.models.prunable import Batch, PrunableModel, samples_in
from ecoflap.models.residence import Residence
from ecoflap.models.towers import Tower

LARGE = 2**20  # bytes


class Stream:
    """One pass through a tower; a batch that a model sends through it several times (texts alone, then with images) makes several.

    Attributes:
        counted: which tokens are real, [batch, tokens], for the sequence and its parts; none where all are.
        finite: no hidden state is NaN or infinite.
        waiting: the hidden states, put away.
    """

    def __init__(self, hidden: Tensor, calls: list[BlockCall], counted: tuple[Tensor, ...], residence: Residence) -> None:
        """``calls``: the other arguments of each block; ``residence``: where the hidden states wait, and those of them that are as large."""
        self.counted, self._residence = counted, residence
        self._calls = put_away(calls, residence)
        self.hidden = hidden

    def call(self, index: int) -> BlockCall:
        """The other arguments of a block."""
        return self._calls[index].changed(lambda value: value.read() if isinstance(value, Waiting) else value)

    @property
    def hidden(self) -> Tensor:
        """What goes into the block whose turn it is, [batch, tokens, features]."""
        return self.waiting.read()

    @hidden.setter
    def hidden(self, hidden: Tensor) -> None:
        self.finite = bool(torch.isfinite(hidden).all())
        self.waiting = Waiting(hidden, self._residence)


def put_away(calls: Sequence[BlockCall], residence: Residence) -> list[BlockCall]:
    """Let large arguments wait like hidden states: a position bias, the states that a cross-attention reads. What blocks share waits once."""
    if residence.kind == "none":
        return list(calls)
    waiting: dict[int, Waiting] = {}

    def put(value: Any) -> Any:
        if not isinstance(value, Tensor) or value.nbytes < LARGE:
            return value
        if id(value) not in waiting:
            waiting[id(value)] = Waiting(value, residence)
        return waiting[id(value)]

    return [call.changed(put) for call in calls]


class Flow:
    """The batches on their way through a tower, block by block.

    Attributes:
        streams: one per batch and pass, at the block whose turn it is.
        chained: each block reads what the block before it put out.
    """

    @torch.no_grad()
    def __init__(self, model: PrunableModel, tower: Tower, batches: Sequence[Batch], behind: Sequence[Passed] = ()) -> None:
        """Run each batch up to the end of the tower, through the model as it is now.

        Args:
            model: in evaluation mode.
            tower: its blocks.
            batches: of the calibration set.
            behind: towers that are finished, in the order in which they were; they are left out where they can be.

        Raises:
            UserError: the forward pass never reaches the tower.
        """
        self.model, self.tower, self.batches = model, tower, batches
        self.chained, self._passes = True, 0
        self._shortcuts: dict[nn.Module, Shortcut] = {}
        self._behind: list[Passed] = []
        if batches:
            # Two samples of the largest batch: a loss may send a single sample through a tower less often than samples that have each other.
            largest = max(batches, key=samples_in)
            self._learn({name: tensor[:2] for name, tensor in largest.items()}, behind)
        self._of_batches = [self._capture(number) for number in range(len(batches))]

    @property
    def streams(self) -> list[Stream]:
        """One per batch and pass."""
        return [stream for streams in self._of_batches for stream in streams]

    def _learn(self, batch: Batch, behind: Sequence[Passed]) -> None:
        """Run a small batch to its end and learn how often batches pass the tower, whether the blocks are chained, and what can be left out."""
        recorder, passages = Recorder(self.tower, 0), Passages([passed.tower for passed in behind])
        with recorder.watching(), passages.watching(), taking(without_head(self.model.module)):
            self.model.loss(batch)
        self._passes, self.chained = recorder.passes(), recorder.chained
        if self.chained:
            shortcuts = {module: how for module, how in recorder.shortcuts.items() if how is not None}
            if same_arguments(self._record(batch, shortcuts).arguments(), recorder.arguments()):
                self._shortcuts = shortcuts
        if not (current := passages.current()):
            return
        # Models may read a tower in the middle, too.
        past = {module: how for number in current for module, how in behind[number].ending_with(passages.outputs[number]).items()}
        short = self._record(batch, self._shortcuts | past)
        if same_arguments(short.arguments(), recorder.arguments()) and same_arguments(short.entered(), recorder.entered()):
            self._behind = [behind[number] for number in current]

    def _record(self, batch: Batch, shortcuts: dict[nn.Module, Shortcut]) -> Recorder:
        """Run a batch to the end of the tower."""
        recorder = Recorder(self.tower, self._passes)
        with recorder.watching(), taking(shortcuts), suppress(Captured):
            self.model.loss(batch)
        return recorder

    def _capture(self, number: int, start: int = 0) -> list[Stream]:
        """The streams of one batch, at block ``start``."""
        shortcuts = dict(self._shortcuts)
        for passed in self._behind:
            shortcuts |= passed.ending_with([output.read() for output in passed.outputs[number]])
        streams = []
        for calls in zip(*self._record(self.batches[number], shortcuts).calls, strict=True):
            _, hidden, counted = calls[start]
            streams.append(Stream(hidden, [call for call, _, _ in calls], counted, self.model.residence))
        return streams

    @torch.no_grad()
    def enter(self, index: int) -> list[Stream]:
        """The streams at a block, whose predecessors may have been pruned."""
        if index and not self.chained:
            self._of_batches = [self._capture(number, index) for number in range(len(self.batches))]
        return self.streams

    @torch.no_grad()
    def leave(self, index: int) -> None:
        """Replace each stream's hidden states by the block's output on them."""
        for stream in self.streams:
            stream.hidden = stream.call(index).run(self.tower.blocks[index].module, stream.hidden)

    def passed(self) -> Passed | None:
        """The tower, when its last block is left; null where it has to be computed again."""
        last = self.tower.blocks[-1].module
        if not self.streams or last not in self._shortcuts:
            return None
        outputs = [[stream.waiting for stream in streams] for streams in self._of_batches]
        return Passed(self.tower, self._shortcuts, self.streams[0].call(-1), outputs)


def flows(model: PrunableModel, towers: Iterable[Tower], batches: Sequence[Batch]) -> Iterator[Flow]:
    """The batches on their way through tower after tower; each is to be left before the next one is asked for."""
    behind: list[Passed] = []
    for tower in towers:
        flow = Flow(model, tower, batches, behind)
        yield flow
        if (passed := flow.passed()) is not None:
            behind.append(passed)


def without_head(module: nn.Module) -> dict[nn.Module, Shortcut]:
    """Leave out the product with the vocabulary, where a model has one: what the loss is doesn't matter to a capture."""
    find = getattr(module, "get_output_embeddings", None)
    head = find() if find is not None else None
    if not isinstance(head, nn.Linear):
        return {}
    return {head: lambda arguments, _: arguments[0].new_zeros(()).expand(*arguments[0].shape[:-1], head.out_features)}
