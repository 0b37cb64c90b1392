"""The walk over the blocks of a model: capture what enters a block, measure what its layers read, let the
caller change the block, and move on through it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass

from ecoflap.blocks.capture import Flow, flows
from ecoflap.blocks.statistics import InputsComplete, InputStatistics, Statistic
from ecoflap.console.progress import track
from ecoflap.data.batch import Batch
from ecoflap.errors import UserError
from ecoflap.models.core.prunable import PrunableModel
from ecoflap.models.core.towers import Block, Tower


@dataclass(frozen=True)
class Visit:
    """A block whose turn it is.

    Attributes:
        flow: the batches on their way through its tower.
        index: its place in the tower.
    """

    flow: Flow
    index: int

    @property
    def tower(self) -> Tower:
        """Its tower."""
        return self.flow.tower

    @property
    def block(self) -> Block:
        """The block itself."""
        return self.flow.tower.blocks[self.index]

    @property
    def finite(self) -> bool:
        """Whether no hidden state of any batch is NaN or infinite."""
        return all(stream.finite for stream in self.flow.streams)

    def measure(self, statistic: type[Statistic] | None, leave: bool) -> InputStatistics | None:
        """Run the block as it is now over all batches, and gather a statistic of each layer's inputs.

        Args:
            statistic: what is gathered; null for nothing.
            leave: the block's outputs become the next block's inputs; otherwise a run ends as soon as the
                inputs of all layers are known, and ``leave`` is to be called.

        Returns:
            The statistics; null where nothing is gathered or the block has no layers.
        """
        if statistic is None or not self.block.layers:
            if leave:
                self.leave()
            return None
        found = InputStatistics(statistic)
        with found.gathering(self.block.layers, stop=not leave):
            for stream in self.flow.streams:
                call = stream.call(self.index)
                found.begin_run(stream.counted, call.tensors)
                with suppress(InputsComplete):
                    output = call.run(self.block.module, stream.hidden)
                    if leave:
                        stream.leave(output, call)
        return found

    def leave(self) -> None:
        """Run the block as it is now; its outputs become the next block's inputs."""
        self.flow.leave(self.index)


def walk(
    model: PrunableModel, towers: Iterable[Tower], batches: Sequence[Batch], title: str, dense: bool = False
) -> Iterator[Visit]:
    """Every block of the towers that have layers, as soon as its inputs are known.

    Args:
        model: in evaluation mode.
        towers: in the order in which they are visited.
        batches: of the calibration set; none where no inputs are wanted.
        title: stands before the progress.
        dense: each block is to see what dense ones put out, although the caller changes blocks on the way:
            blocks whose inputs come from a forward pass are visited last to first.

    Yields:
        Each block once; it has to be left before the next one is asked for.

    Raises:
        UserError: with ``dense``, blocks would be changed before others that read what they put out.
    """
    chosen = [tower for tower in towers if tower.layers]
    visits = _visits(model, chosen, batches, dense)
    for visit in track(visits, title, total=sum(len(tower.blocks) for tower in chosen)):
        visit.flow.enter(visit.index)
        yield visit


def _visits(
    model: PrunableModel, towers: Sequence[Tower], batches: Sequence[Batch], dense: bool
) -> Iterator[Visit]:
    """The blocks in the order in which they are visited."""
    for flow in flows(model, towers, batches, dense):
        order = range(len(flow.tower.blocks))
        if dense and flow.from_start and flow.structure is not None and flow.structure.backwards:
            raise UserError(
                f"propagate=dense prunes the last blocks of tower {flow.tower.name} ({flow.tower.path})"
                " first, and the model runs some of them before earlier ones; use propagate=pruned, or leave"
                " the tower out of towers"
            )
        for index in reversed(order) if dense and flow.from_start else order:
            yield Visit(flow, index)
