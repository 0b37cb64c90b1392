"""Carry the inputs of a tower's blocks from block to block, one block at a time.

A block's output is the next one's input. Where the model does something to it in between (DeepStack adds
picture features), or blocks write into what the next ones are given (shared key-value states), what enters
the next block is captured by a forward pass that bypasses the blocks before it and puts what the last one
left in its place; where that isn't enough, by one that runs them. Every pass ends at the block that it is
for. ``structure`` tells the cases apart.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn

from ecoflap.blocks.activations import Waiting
from ecoflap.blocks.block_call import BlockCall
from ecoflap.blocks.bypass import SubstituteForward, taking
from ecoflap.blocks.finished_towers import FinishedTower
from ecoflap.blocks.recorder import Captured, Entry, Left, Recorder
from ecoflap.blocks.structure import Structure, learn, leaving
from ecoflap.data.batch import Batch, samples_in
from ecoflap.errors import UserError
from ecoflap.models.core.prunable import PrunableModel
from ecoflap.models.core.towers import Tower
from ecoflap.models.offload.placement import Placement

LARGE = 2**20  # bytes


class Stream:
    """One pass through a tower; a batch that a model sends through it several times (texts alone, then with
    images) makes several.

    Attributes:
        block: the index of the block whose turn it is.
        counted: which tokens are real, [batch, tokens], for the sequence and its parts; none where all are.
        finite: no hidden state is NaN or infinite.
        waiting: the hidden states, put away.
    """

    def __init__(
        self, entry: Entry, calls: Mapping[int, BlockCall], placement: Placement, writes: bool = False
    ) -> None:
        """Begin at the first block.

        Args:
            entry: what enters it.
            calls: the other arguments of the blocks, by index, as far as they are known.
            placement: where the hidden states wait, and those of the arguments that are as large.
            writes: blocks write to what they are given, so that they get copies.
        """
        self.block, self.counted = 0, entry.counted
        self._residence, self._writes = placement, writes
        self._calls = put_away(calls, placement)
        self._anew: dict[int, BlockCall] = {}
        self._left: BlockCall | None = None
        self.hidden = entry.hidden

    def call(self, index: int) -> BlockCall:
        """The other arguments of a block; containers among them are copies, which it may write into."""
        call = self._anew[index] if index in self._anew else self._calls[index]
        call = call.changed(lambda value: value.read() if isinstance(value, Waiting) else value)
        return call.copied(torch.clone) if self._writes else call.copied()

    @property
    def hidden(self) -> Tensor:
        """What goes into the block whose turn it is, [batch, tokens, features]."""
        return self.waiting.read().clone() if self._writes else self.waiting.read()

    @hidden.setter
    def hidden(self, hidden: Tensor) -> None:
        self.finite = bool(torch.isfinite(hidden).all())
        self.waiting = Waiting(hidden, self._residence)

    def enter(self, index: int, entry: Entry) -> None:
        """Take what enters a block from a forward pass, instead of what was known of it."""
        self.block, self.counted, self.hidden = index, entry.counted, entry.hidden
        self._anew = put_away({index: entry.call}, self._residence)

    def leave(self, output: Tensor, call: BlockCall) -> None:
        """Move on to the next block, with what this one put out and wrote into its arguments."""
        self.block, self.hidden, self._left = self.block + 1, output, call.without_tensors()

    @property
    def left(self) -> Left:
        """What the block before left."""
        assert self._left is not None
        return Left(self.hidden, self._left)


def put_away(calls: Mapping[int, BlockCall], placement: Placement) -> dict[int, BlockCall]:
    """Let large arguments wait like hidden states: a position bias, the states that a cross-attention reads.
    What blocks share waits once.
    """
    if placement.kind == "none":
        return dict(calls)
    waiting: dict[int, Waiting] = {}

    def put(value: Any) -> Any:
        if not isinstance(value, Tensor) or value.nbytes < LARGE:
            return value
        if id(value) not in waiting:
            waiting[id(value)] = Waiting(value, placement)
        return waiting[id(value)]

    return {index: call.changed(put) for index, call in calls.items()}


class Flow:
    """The batches on their way through a tower, block by block.

    Attributes:
        structure: how the model calls the blocks; null without batches.
        from_start: blocks whose inputs come from a forward pass through all blocks before them.
    """

    @torch.no_grad()
    def __init__(
        self,
        model: PrunableModel,
        tower: Tower,
        batches: Sequence[Batch],
        behind: Sequence[FinishedTower] = (),
        dense: bool = False,
    ) -> None:
        """Capture what enters the first block, through the model as it is now.

        Args:
            model: in evaluation mode.
            tower: its blocks.
            batches: of the calibration set.
            behind: towers that are finished, in the order in which they were; they are bypassed where they
                can be.
            dense: refuse a tower that reads what pruned ones put out.

        Raises:
            UserError: such a tower is given, the forward pass never reaches it, or not all batches call all
                blocks alike.
        """
        self.model, self.tower, self.batches = model, tower, batches
        self.structure: Structure | None = None
        self.from_start: set[int] = set()
        self._of_batches: list[list[Stream]] = []
        self._entered: int | None = None
        if batches:
            # Two samples: a loss may send a single one through a tower less often than samples that have each
            # other. Of the batch with the most tensors: samples with pictures have more of them than texts
            # alone.
            richest = max(batches, key=lambda batch: (len(batch), samples_in(batch)))
            others = [_two_of(batch) for batch in _others(richest, batches)]
            self.structure = learn(model, tower, _two_of(richest), others, behind, dense)
            self.from_start |= self.structure.from_start
            self._of_batches = [self._begin(self.structure, number) for number in range(len(batches))]

    @property
    def streams(self) -> list[Stream]:
        """One per batch and pass."""
        return [stream for streams in self._of_batches for stream in streams]

    @property
    def _at(self) -> int:
        """The block whose turn it is."""
        return next((stream.block for stream in self.streams), 0)

    def _begin(self, structure: Structure, number: int) -> list[Stream]:
        """The streams of one batch at the first block, with the arguments of all blocks that aren't captured
        anew.
        """
        replayed = set(range(len(self.tower.blocks))) - structure.from_output - structure.from_start
        found = self._record(structure, number, replayed, {} if structure.looped else structure.bypasses)
        self._check_calls(number, found, len(found.entries[0]))
        # This batch is not like the one that was learned from: it has pictures, say.
        self.from_start |= found.broken & replayed
        streams = []
        for entries in zip(*(found.entries[index] for index in sorted(replayed)), strict=True):
            calls = {index: entry.call for index, entry in zip(sorted(replayed), entries, strict=True)}
            streams.append(Stream(entries[0], calls, self.model.placement, structure.writes))
        return streams

    def _record(
        self,
        structure: Structure,
        number: int,
        wanted: Collection[int],
        bypasses: Mapping[nn.Module, SubstituteForward],
    ) -> Recorder:
        """Run a batch as far as is wanted."""
        past = dict(bypasses)
        for finished_tower in structure.bypassed:
            past |= finished_tower.ending_with([output.read() for output in finished_tower.outputs[number]])
        found = Recorder(self.tower, structure.passes, wanted, structure.writes)
        with found.watching(), taking(past), suppress(Captured):
            self.model.loss(self.batches[number])
        return found

    def _check_calls(self, number: int, found: Recorder, expected: int) -> None:
        """Refuse batches that don't call all blocks alike.

        Raises:
            UserError: a block was called more or less often than the first one.
        """
        for index, entries in found.entries.items():
            if len(entries) != expected:
                raise UserError(
                    f"batch {number + 1} of {len(self.batches)} calls {self.tower.blocks[index].name}"
                    f" {len(entries)} times and the first block of tower {self.tower.name} {expected} times;"
                    " calibrate on samples of one kind, or leave the tower out of towers"
                )

    @torch.no_grad()
    def enter(self, index: int) -> list[Stream]:
        """The streams at a block, whose predecessors may have been pruned."""
        structure, replayed = self.structure, self._at == index
        if structure is None or (
            replayed and (self._entered == index or index not in structure.from_output | self.from_start)
        ):
            return self.streams
        known = replayed and index not in self.from_start
        for number, streams in enumerate(self._of_batches):
            if not streams:
                continue
            bypasses: Mapping[nn.Module, SubstituteForward] = {}
            if known:
                block = self.tower.blocks[index - 1].module
                bypasses = leaving(structure.bypasses, block, [stream.left for stream in streams])
            found = self._record(structure, number, [index], bypasses)
            self._check_calls(number, found, len(streams))
            for stream, entry in zip(streams, found.entries[index], strict=True):
                stream.enter(index, entry)
        self._entered = index
        return self.streams

    @torch.no_grad()
    def leave(self, index: int) -> None:
        """Replace each stream's hidden states by the block's output on them."""
        for stream in self.streams:
            call = stream.call(index)
            stream.leave(call.run(self.tower.blocks[index].module, stream.hidden), call)

    def finished_tower(self) -> FinishedTower:
        """The tower, when its last block is left."""
        bypasses = {} if self.structure is None else self.structure.bypasses
        ended = self._at == len(self.tower.blocks) and self.tower.blocks[-1].module in bypasses
        if self.structure is None or self.structure.looped or not ended:
            return FinishedTower(self.tower, {}, [])
        return FinishedTower(
            self.tower, bypasses, [[stream.waiting for stream in streams] for streams in self._of_batches]
        )


def _others(one: Batch, batches: Sequence[Batch]) -> list[Batch]:
    """A batch of each set of inputs; last one of the same inputs, another one and of another length if there
    is.
    """

    def difference(batch: Batch) -> tuple[bool, bool]:
        return any(batch[name].shape[1:] != one[name].shape[1:] for name in one), batch is not one

    kinds = {frozenset(batch): batch for batch in batches if batch.keys() != one.keys()}
    return [*kinds.values(), max((batch for batch in batches if batch.keys() == one.keys()), key=difference)]


def _two_of(batch: Batch) -> Batch:
    return {name: tensor[:2] for name, tensor in batch.items()}


def flows(
    model: PrunableModel, towers: Iterable[Tower], batches: Sequence[Batch], dense: bool = False
) -> Iterator[Flow]:
    """The batches on their way through tower after tower; each is to be left before the next one is asked
    for.

    Args:
        model: in evaluation mode.
        towers: in the order in which they are pruned.
        batches: of the calibration set.
        dense: what enters a tower is to come from dense ones, although some are pruned on the way.
    """
    behind: list[FinishedTower] = []
    for tower in towers:
        flow = Flow(model, tower, batches, behind, dense)
        yield flow
        behind.append(flow.finished_tower())
