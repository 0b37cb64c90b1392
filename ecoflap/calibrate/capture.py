"""Capture the inputs of a tower's blocks, and replay one block at a time on them.

Every argument is recorded as it comes and replayed unchanged, without naming it: masks, position biases, rotary embeddings and encoder states
reach each block whatever the release of transformers calls them. Only the hidden states (the first tensor) are replaced from block to block.

Where a model changes the hidden states between two blocks, so that a block's output is not the next one's input, each block's inputs are
captured anew by a forward pass through the pruned blocks before it. Elsewhere the blocks themselves are left out of all forward passes but the
first: what is wanted of them is their arguments.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ecoflap.calibrate.activations import Waiting
from ecoflap.calibrate.shortcut import Shortcut, shortcut, taking
from ecoflap.errors import UserError
from ecoflap.models.losses import counted_tokens
from ecoflap.models.prunable import Batch, PrunableModel
from ecoflap.models.residence import Residence
from ecoflap.models.towers import Tower


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

    @property
    def tensors(self) -> list[Tensor]:
        """The tensors that the block gets beside the hidden states, such as the states that a cross-attention reads."""
        return [value for value in (*self.arguments, *self.keywords.values()) if isinstance(value, Tensor)]


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
        recorder = _Recorder(self.tower, 0)
        with recorder.watching(), taking(_without_head(self.model.module)):
            self.model.loss(batch)
        self._passes, self.chained = recorder.passes(), recorder.chained
        if not self.chained:
            return
        self._shortcuts = {module: how for module, how in recorder.shortcuts.items() if how is not None}
        short = self._record(batch)
        if not _same(short.arguments(), recorder.arguments()):
            self._shortcuts = {}

    def _record(self, batch: Batch) -> _Recorder:
        """Run a batch to the end of the tower."""
        recorder = _Recorder(self.tower, self._passes)
        with recorder.watching(), taking(self._shortcuts), suppress(_Captured):
            self.model.loss(batch)
        return recorder

    def _capture(self, batch: Batch, start: int = 0) -> list[Stream]:
        """The streams of one batch, at block ``start``."""
        return self._record(batch).streams(start, self.model.residence)

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


def _same(one: Any, other: Any) -> bool:
    """Whether two calls, or the arguments in them, are the same; objects that hold no tensors are not looked into."""
    if isinstance(one, Tensor):
        return isinstance(other, Tensor) and torch.equal(one, other)
    if isinstance(one, BlockCall):
        return _same((one.arguments, one.keywords, one.place), (other.arguments, other.keywords, other.place))
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(_same(value, other[name]) for name, value in one.items())
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(_same, one, other))
    return type(one) is type(other)


def _size(batch: Batch) -> int:
    """Number of samples."""
    return len(next(iter(batch.values()), ()))


class _Recorder:
    """Records the calls of a tower's blocks during one forward pass, and ends the pass when the last one is known."""

    def __init__(self, tower: Tower, passes: int) -> None:
        """``passes``: how often the tower is run; 0 where that isn't known yet."""
        self.tower, self.expected = tower, passes
        self.calls: list[list[tuple[BlockCall, Tensor, tuple[Tensor, ...]]]] = [[] for _ in tower.blocks]
        self.chained = True
        self.shortcuts: dict[nn.Module, Shortcut | None] = {}
        self._last: Tensor | None = None

    @contextmanager
    def watching(self) -> Iterator[None]:
        handles = []
        for index, block in enumerate(self.tower.blocks):
            handles.append(block.module.register_forward_pre_hook(self._before(index), with_kwargs=True))
            handles.append(block.module.register_forward_hook(self._after, with_kwargs=True))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _before(self, index: int) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]:
        def record(_: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
            call, hidden = _take_out_hidden(arguments, keywords)
            if index and self._last is not None and hidden is not self._last and not torch.equal(hidden, self._last):
                self.chained = False
            self.calls[index].append((call, hidden, counted_tokens()))
            if index == len(self.calls) - 1 and len(self.calls[index]) == self.expected:
                raise _Captured

        return record

    def _after(self, module: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any], output: Any) -> None:
        self._last = first_tensor(output)
        if not self.expected and self.shortcuts.get(module, ()) is not None:  # one call that makes more than hidden states settles it
            call, _ = _take_out_hidden(arguments, keywords)
            self.shortcuts[module] = shortcut(arguments, keywords, call.place, output)

    def arguments(self) -> list[list[BlockCall]]:
        """What each block got beside the hidden states, call by call."""
        return [[call for call, _, _ in calls] for calls in self.calls]

    def passes(self) -> int:
        """How often each block was called.

        Raises:
            UserError: some more often than others, or never.
        """
        counts = [len(calls) for calls in self.calls]
        if min(counts) == 0:
            reached = sum(map(bool, counts))
            raise UserError(
                f"the calibration data never reach all blocks of tower {self.tower.name} ({self.tower.path}): "
                f"{reached} of {len(counts)} were called; leave it out of towers"
            )
        if len(set(counts)) > 1:
            raise UserError(
                f"the blocks of tower {self.tower.name} ({self.tower.path}) are called {min(counts)} to {max(counts)} times per batch; "
                "name lists of blocks that always run together with model.towers"
            )
        return counts[0]

    def streams(self, start: int, residence: Residence) -> list[Stream]:
        """One stream per pass, its hidden states those that block ``start`` got."""
        streams = []
        for calls in zip(*self.calls, strict=True):
            _, hidden, counted = calls[start]
            streams.append(Stream(hidden, [call for call, _, _ in calls], counted, residence))
        return streams
