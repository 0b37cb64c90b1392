"""Pass the hidden states of calibration batches through a tower, one block at a time.

The output of a block is the input of the next one. Where the model changes it in between (DeepStack adds
image features), or blocks write into arguments of the next ones (shared key-value states), a forward pass
captures the next block's input: it bypasses the blocks before, with the stored output in place of the last
one's. Where that isn't enough, it runs them. Every pass ends at the block whose input it captures.
``structure`` tells the cases apart.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace

import torch
from torch import nn

from ecoflap.blocks.bypass import SubstituteForward, bypassing
from ecoflap.blocks.finished_towers import FinishedTower
from ecoflap.blocks.partial_passes import bypass_with_output
from ecoflap.blocks.recorder import CaptureComplete, Recorder
from ecoflap.blocks.stream import Stream
from ecoflap.blocks.structure import Structure, calls_of_first_block, learn_structure
from ecoflap.data.batch import Batch, first_samples, samples_in
from ecoflap.distributed.collectives import gathered, share_of_samples
from ecoflap.errors import UserError
from ecoflap.models.core.prunable import PrunableModel
from ecoflap.models.core.towers import Tower


class Flow:
    """Calibration batches that pass through a tower, block by block.

    Attributes:
        model: the model as it is now.
        tower: its blocks.
        batches: the calibration batches.
        structure: how the model calls the blocks; None without batches.
        from_start: blocks whose inputs come from a forward pass through all blocks before them.
    """

    @torch.no_grad()
    def __init__(
        self,
        model: PrunableModel,
        tower: Tower,
        batches: Sequence[Batch],
        finished: Sequence[FinishedTower] = (),
        dense: bool = False,
        known: Sequence[Batch] | None = None,
    ) -> None:
        """Capture the inputs of the first block, through the model as it is now.

        Args:
            model: in evaluation mode.
            tower: its blocks.
            batches: of the calibration set.
            finished: finished towers in the order in which they were pruned; they are bypassed if possible.
            dense: refuse a tower that reads the output of pruned ones.
            known: the batches of all processes of the run, which learn the same structure from them; None if
                each process has all batches.

        Raises:
            UserError: if ``dense`` refuses the tower, the forward pass never reaches it, or some batch calls
                some blocks more often than others.
        """
        self.model, self.tower, self.batches = model, tower, batches
        self.structure: Structure | None = None
        self.from_start: set[int] = set()
        self._of_batches: list[list[Stream]] = []
        self._entered: int | None = None
        if batches:
            # The structure is learned from two samples, as a contrastive loss may send a single one through a
            # tower less often. They are of the batch with the most tensors: samples with images have more of
            # them than texts alone.
            known = batches if known is None else known
            richest = max(known, key=lambda batch: (len(batch), samples_in(batch)))
            others = [first_samples(batch, 2) for batch in _others(richest, known)]
            learned = learn_structure(model, tower, first_samples(richest, 2), others, finished, dense)
            self.structure = _with_more_samples(learned, model, tower, richest)
            self.from_start |= self.structure.from_start
            self._of_batches = [self._begin(self.structure, number) for number in range(len(batches))]
            if known is not batches:
                self.from_start = set().union(*gathered(self.from_start))

    @property
    def streams(self) -> list[Stream]:
        """The streams of all batches, one per pass through the tower."""
        return [stream for streams in self._of_batches for stream in streams]

    @property
    def _at(self) -> int:
        """The index of the next block to run."""
        return next((stream.block for stream in self.streams), 0)

    def _begin(self, structure: Structure, number: int) -> list[Stream]:
        """The streams of one batch at the first block, with the arguments of all blocks that are replayed."""
        replayed = set(range(len(self.tower.blocks))) - structure.from_output - structure.from_start
        found = self._record(structure, number, replayed, {} if structure.looped else structure.bypasses)
        self._check_calls(number, found, len(found.inputs[0]))
        # This batch may differ from the one that the structure was learned from, by images for example.
        self.from_start |= found.unchained & replayed
        streams = []
        for inputs in zip(*(found.inputs[index] for index in sorted(replayed)), strict=True):
            calls = {index: given.call for index, given in zip(sorted(replayed), inputs, strict=True)}
            streams.append(Stream(inputs[0], calls, self.model.placement, structure.writes))
        return streams

    def _record(
        self,
        structure: Structure,
        number: int,
        wanted: Collection[int],
        bypasses: Mapping[nn.Module, SubstituteForward],
    ) -> Recorder:
        """Run a batch until the inputs of the wanted blocks are known.

        Args:
            structure: how the model calls the blocks.
            number: the index of the batch.
            wanted: the blocks whose inputs to record.
            bypasses: the substitute forwards of bypassed blocks.
        """
        forwards = dict(bypasses)
        for tower in structure.bypassed:
            forwards |= tower.bypass_with([output.read() for output in tower.outputs[number]])
        calls = structure.calls(samples_in(self.batches[number]))
        found = Recorder(self.tower, calls, wanted, structure.writes)
        with found.recording(), bypassing(forwards), suppress(CaptureComplete):
            self.model.loss(self.batches[number])
        return found

    def _check_calls(self, number: int, found: Recorder, expected: int) -> None:
        """Refuse a batch that calls some blocks more often than others.

        Raises:
            UserError: if a block was called more or less often than the first one.
        """
        for index, calls in found.inputs.items():
            if len(calls) != expected:
                raise UserError(
                    f"batch {number + 1} of {len(self.batches)} calls {self.tower.blocks[index].name}"
                    f" {len(calls)} times and the first block of tower {self.tower.name} {expected} times;"
                    " calibrate on samples of one kind, or leave the tower out of towers"
                )

    @torch.no_grad()
    def enter(self, index: int) -> list[Stream]:
        """The streams with the inputs of a block, whose predecessors may have been pruned."""
        structure, replayed = self.structure, self._at == index
        if structure is None:
            return self.streams
        if replayed and (self._entered == index or index not in structure.from_output | self.from_start):
            return self.streams
        from_output = replayed and index not in self.from_start
        for number, streams in enumerate(self._of_batches):
            if not streams:
                continue
            bypasses: Mapping[nn.Module, SubstituteForward] = {}
            if from_output:
                block = self.tower.blocks[index - 1].module
                outputs = [stream.last_output for stream in streams]
                bypasses = bypass_with_output(structure.bypasses, block, outputs)
            found = self._record(structure, number, [index], bypasses)
            self._check_calls(number, found, len(streams))
            for stream, given in zip(streams, found.inputs[index], strict=True):
                stream.enter(index, given)
        self._entered = index
        return self.streams

    @torch.no_grad()
    def leave(self, index: int) -> None:
        """Run a block on each stream, and replace the stream's hidden states by its output."""
        for stream in self.streams:
            stream.pass_through(self.tower.blocks[index].module)

    def finished_tower(self) -> FinishedTower:
        """The tower with its outputs, once all blocks have run."""
        bypasses = {} if self.structure is None else self.structure.bypasses
        ended = self._at == len(self.tower.blocks) and self.tower.blocks[-1].module in bypasses
        if self.structure is None or self.structure.looped or not ended:
            return FinishedTower(self.tower, {}, [])
        outputs = [[stream.offloaded for stream in streams] for streams in self._of_batches]
        return FinishedTower(self.tower, bypasses, outputs)


def _others(one: Batch, batches: Sequence[Batch]) -> list[Batch]:
    """One batch of each other set of inputs, and last the longest other one of the same set, of another
    length if possible.
    """

    def difference(batch: Batch) -> tuple[bool, int, bool]:
        differs = any(batch[name].shape[1:] != one[name].shape[1:] for name in one)
        return differs, sum(tensor[0].numel() for tensor in batch.values()), batch is not one

    kinds = {frozenset(batch): batch for batch in batches if batch.keys() != one.keys()}
    return [*kinds.values(), max((batch for batch in batches if batch.keys() == one.keys()), key=difference)]


def _with_more_samples(learned: Structure, model: PrunableModel, tower: Tower, batch: Batch) -> Structure:
    """What was learned from two samples of a batch, with the calls that each further one adds."""
    if samples_in(batch) <= 2:
        return learned
    bypasses = {} if learned.looped else learned.bypasses
    more = calls_of_first_block(model, tower, first_samples(batch, 3), bypasses) - learned.passes
    return replace(learned, per_sample=max(0, more))


def flows(
    model: PrunableModel, towers: Iterable[Tower], batches: Sequence[Batch], dense: bool = False
) -> Iterator[Flow]:
    """The batches in tower after tower; finish each tower before asking for the next one.

    Args:
        model: in evaluation mode.
        towers: in the order in which they are pruned.
        batches: of the calibration set; each process of the run has its share of the samples.
        dense: refuse a tower that reads the output of pruned ones.
    """
    finished: list[FinishedTower] = []
    own = share_of_samples(batches)
    for tower in towers:
        flow = Flow(model, tower, own, finished, dense, batches)
        yield flow
        finished.append(flow.finished_tower())
