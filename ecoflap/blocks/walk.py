"""Walk over the blocks of a model: capture a block's inputs, measure its layers, change it, run it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property

from ecoflap.blocks.capture import Flow, flows
from ecoflap.blocks.dense_twin import DenseTwin
from ecoflap.blocks.input_statistics import InputsComplete, InputStatistics
from ecoflap.blocks.layer_by_layer import LayerByLayer, PruneGroups
from ecoflap.blocks.statistics import Statistic
from ecoflap.blocks.token_choice import Masks, choose_tokens, require_tokens
from ecoflap.console.progress import track
from ecoflap.data.batch import Batch
from ecoflap.errors import UserError
from ecoflap.models.core.layer_names import first_and_count
from ecoflap.models.core.prunable import PrunableModel
from ecoflap.models.core.towers import Block, Tower


@dataclass(frozen=True)
class Visit:
    """One block of the walk.

    Attributes:
        flow: the batches that pass through its tower.
        index: its index in the tower.
        tokens: which tokens count in statistics, see ``choose_tokens``.
        twin: the dense model, at the same block; None if none runs beside this one.
    """

    flow: Flow
    index: int
    tokens: str = "all"
    twin: DenseTwin | None = None

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

    @cached_property
    def counted(self) -> list[Masks]:
        """For each stream, masks of the tokens that count; chosen once, before the block changes."""
        return choose_tokens(self.tokens, self.tower, self.block, self.flow.streams)

    def measure(self, statistic: type[Statistic] | None, leave: bool) -> InputStatistics | None:
        """Run the block in its present state over all batches, and gather a statistic of each layer's inputs.

        Args:
            statistic: the statistic to gather; None for none.
            leave: make the block's outputs the next block's inputs. Otherwise a run may end as soon as all
                layers' inputs are known, and ``leave`` has to be called later.

        Returns:
            The statistics; None if nothing is gathered, or the block has no layers.
        """
        if statistic is None or not self.block.layers:
            if leave:
                self.leave()
            return None
        found, masks = InputStatistics(statistic), self.counted
        with found.gathering(self.block.layers):
            for stream, counted in zip(self.flow.streams, masks, strict=True):
                call = stream.call(self.index)
                shapes = (stream.offloaded.shape, *(tensor.shape for tensor in call.tensors))
                found.begin_run(counted, call.tensors, None if leave else shapes)
                with suppress(InputsComplete):
                    output = call.run(self.block.module, stream.hidden)
                    if leave:
                        stream.leave(output, call)
        found.combine(self.block.layers)
        return found

    def prune_layer_by_layer(self, statistic: type[Statistic], prune: PruneGroups) -> None:
        """Run the block, prune each layer as soon as its input is known in all batches, and leave the block.

        Args:
            statistic: the statistic to gather of each layer's input.
            prune: prunes groups of layers that read the same input in place.

        Raises:
            UserError: if some layer of the tower is called several times in one batch.
        """
        self.require_one_call()
        structure = self.flow.structure
        assert structure is not None
        groups = structure.layer_orders[self.index].groups()
        block = LayerByLayer(self.block, groups, statistic, prune, self.twin)
        block.run(self.index, self.flow.streams, self.counted)

    def require_one_call(self) -> None:
        """Refuse a tower that calls a layer again on a result of its first call.

        Raises:
            UserError: if it is such a tower.
        """
        structure = self.flow.structure
        assert structure is not None
        names = [layer.name for layer in self.tower.layers]
        repeated = {layer.name for order in structure.layer_orders.values() for layer in order.repeated}
        if structure.looped or (structure.backwards and self.flow.from_start):
            repeated.update(names)
        if repeated:
            raise UserError(
                "propagate=layer and compensated prune a layer before it is called, and tower"
                f" {self.tower.name} ({self.tower.path}) calls {first_and_count(repeated, names)} several"
                " times; use propagate=pruned, or leave the tower out of towers"
            )

    def leave(self) -> None:
        """Run the block in its present state; its outputs become the next block's inputs."""
        self.flow.leave(self.index)


def walk(
    model: PrunableModel,
    towers: Iterable[Tower],
    batches: Sequence[Batch],
    title: str,
    dense: bool = False,
    tokens: str = "all",
    twin: DenseTwin | None = None,
) -> Iterator[Visit]:
    """Visit every block of the towers that have layers, once its inputs are known.

    Args:
        model: in evaluation mode.
        towers: in the order in which they are visited.
        batches: batches of the calibration set; empty if no inputs are needed. Each process of the run walks
            with its share of the samples.
        title: the title of the progress bar.
        dense: give each block the outputs of dense blocks, although the caller changes blocks: blocks whose
            inputs come from a forward pass are visited last to first.
        tokens: which tokens count in statistics, see ``choose_tokens``.
        twin: the dense model, which enters each block too.

    Yields:
        Each block once; the caller has to leave it before the next one, and the twin as well.

    Raises:
        UserError: if, with ``dense``, blocks would be changed before others that read their outputs, or the
            kinds of tokens are not known that ``tokens`` tells apart.
    """
    chosen = [tower for tower in towers if tower.layers]
    require_tokens(model, chosen, batches, tokens)
    visits = _visits(model, chosen, batches, dense, tokens, twin)
    for visit in track(visits, title, total=sum(len(tower.blocks) for tower in chosen)):
        visit.flow.enter(visit.index)
        if twin is not None:
            twin.enter(visit.flow, visit.index)
        yield visit


def _visits(
    model: PrunableModel,
    towers: Sequence[Tower],
    batches: Sequence[Batch],
    dense: bool,
    tokens: str,
    twin: DenseTwin | None,
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
            yield Visit(flow, index, tokens, twin)
