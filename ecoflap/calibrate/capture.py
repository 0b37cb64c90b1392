"""Capture the inputs of a tower's blocks, and replay one block at a time on them.

Where a model changes the hidden states between two blocks, so that a block's output is not the next one's input, each block's inputs are
captured anew by a forward pass through the pruned blocks before it. Elsewhere the blocks themselves are left out of all forward passes but the
first: what is wanted of them is their arguments.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

import torch
from torch import Tensor, nn

from ecoflap.calibrate.activations import Waiting
from ecoflap.calibrate.block_call import BlockCall, same_arguments
from ecoflap.calibrate.recorder import Captured, Recorder
from ecoflap.calibrate.shortcut import Shortcut, taking
from ecoflap.models.prunable import Batch, PrunableModel
from ecoflap.models.residence import Residence
from ecoflap.models.towers import Tower


class Stream:
    """One pass through a tower; a batch that a model sends through it several times (texts alone, then with images) makes several.

    Attributes:
        calls: the other arguments of each block.
        counted: which tokens are real, [batch, tokens], for the sequence and its parts; none where all are.
        finite: no hidden state is NaN or infinite.
    """

    def __init__(self, hidden: Tensor, calls: list[BlockCall], counted: tuple[Tensor, ...], residence: Residence) -> None:
        """``residence``: where the hidden states wait."""
        self.calls, self.counted, self._residence = calls, counted, residence
        self.hidden = hidden

    @property
    def hidden(self) -> Tensor:
        """What goes into the block whose turn it is, [batch, tokens, features]."""
        return self._waiting.read()

    @hidden.setter
    def hidden(self, hidden: Tensor) -> None:
        self.finite = bool(torch.isfinite(hidden).all())
        self._waiting = Waiting(hidden, self._residence)


class Flow:
    """The batches on their way through a tower, block by block.

    Attributes:
        streams: one per batch and pass, at the block whose turn it is.
        chained: each block reads what the block before it put out.
    """

    @torch.no_grad()
    def __init__(self, model: PrunableModel, tower: Tower, batches: Sequence[Batch]) -> None:
        """Run each batch up to the end of the tower, through the model as it is now.

        Raises:
            UserError: the forward pass never reaches the tower.
        """
        self.model, self.tower, self.batches = model, tower, batches
        self.chained, self._passes = True, 0
        self._shortcuts: dict[nn.Module, Shortcut] = {}
        if batches:
            # Two samples of the largest batch: a loss may send a single sample through a tower less often than samples that have each other.
            largest = max(batches, key=_size)
            self._learn({name: tensor[:2] for name, tensor in largest.items()})
        self.streams = [stream for batch in batches for stream in self._capture(batch)]

    def _learn(self, batch: Batch) -> None:
        """Run a small batch to its end and learn how often batches pass the tower, whether the blocks are chained, and which can be left out."""
        recorder = Recorder(self.tower, 0)
        with recorder.watching(), taking(_without_head(self.model.module)):
            self.model.loss(batch)
        self._passes, self.chained = recorder.passes(), recorder.chained
        if not self.chained:
            return
        self._shortcuts = {module: how for module, how in recorder.shortcuts.items() if how is not None}
        short = self._record(batch)
        if not same_arguments(short.arguments(), recorder.arguments()):
            self._shortcuts = {}

    def _record(self, batch: Batch) -> Recorder:
        """Run a batch to the end of the tower."""
        recorder = Recorder(self.tower, self._passes)
        with recorder.watching(), taking(self._shortcuts), suppress(Captured):
            self.model.loss(batch)
        return recorder

    def _capture(self, batch: Batch, start: int = 0) -> list[Stream]:
        """The streams of one batch, at block ``start``."""
        streams = []
        for calls in zip(*self._record(batch).calls, strict=True):
            _, hidden, counted = calls[start]
            streams.append(Stream(hidden, [call for call, _, _ in calls], counted, self.model.residence))
        return streams

    @torch.no_grad()
    def enter(self, index: int) -> list[Stream]:
        """The streams at a block, whose predecessors may have been pruned."""
        if index and not self.chained:
            self.streams = [stream for batch in self.batches for stream in self._capture(batch, index)]
        return self.streams

    @torch.no_grad()
    def leave(self, index: int) -> None:
        """Replace each stream's hidden states by the block's output on them."""
        for stream in self.streams:
            stream.hidden = stream.calls[index].run(self.tower.blocks[index].module, stream.hidden)


def _without_head(module: nn.Module) -> dict[nn.Module, Shortcut]:
    """Leave out the product with the vocabulary, where a model has one: what the loss is doesn't matter to a capture."""
    find = getattr(module, "get_output_embeddings", None)
    head = find() if find is not None else None
    if not isinstance(head, nn.Linear):
        return {}
    return {head: lambda arguments, _: arguments[0].new_zeros(()).expand(*arguments[0].shape[:-1], head.out_features)}


def _size(batch: Batch) -> int:
    """Number of samples."""
    return len(next(iter(batch.values()), ()))
