"""The dense model beside the pruned one: what layers would read if nothing before them were pruned.

Where a forward pass gives a block's inputs (the first one's of a tower, and those that the model changes),
both models begin with what the pruned one gives: a twin knows the errors of its tower's blocks since then.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import copy
from functools import partial

from torch import Tensor, nn

from ecoflap.blocks.block_call import BlockCall
from ecoflap.blocks.capture import Flow
from ecoflap.blocks.containers import version_of
from ecoflap.blocks.drifts import Readings
from ecoflap.blocks.input_statistics import counted_inputs
from ecoflap.blocks.residual_streams import inputs_noted
from ecoflap.blocks.stream import Stream
from ecoflap.blocks.token_choice import Masks
from ecoflap.models.core.hooks import hooks
from ecoflap.models.core.layers import Layer
from ecoflap.models.core.towers import Block, Tower

log = logging.getLogger(__name__)


class DenseTwin:
    """The streams of the batches through the dense blocks of a tower.

    Attributes:
        streams: of all batches, beside the flow's.
    """

    def __init__(self) -> None:
        self.streams: list[Stream] = []
        self._flow: Flow | None = None
        self._index = 0
        self._dense: dict[Layer, Tensor] = {}

    def enter(self, flow: Flow, index: int) -> None:
        """Come to a dense block, which the flow has entered."""
        captured = set() if flow.structure is None else flow.structure.from_output | flow.from_start
        if flow is not self._flow and captured:
            _warn_of_captured(flow.tower, min(captured), len(captured))
        follows = flow is self._flow and all(stream.block == index for stream in self.streams)
        if index in captured or not follows:
            self.streams = [copy(stream) for stream in flow.streams]
        self._flow, self._index, self._dense = flow, index, {}

    @property
    def block(self) -> Block:
        """The present block."""
        assert self._flow is not None
        return self._flow.tower.blocks[self._index]

    @property
    def sources(self) -> dict[Layer, nn.Module]:
        """The layers of the block that write into a residual stream, and the modules that read it before."""
        structure = None if self._flow is None else self._flow.structure
        found = {} if structure is None else structure.residuals
        return dict(found[self._index].read_by) if self._index in found else {}

    def remember(self, layers: tuple[Layer, ...]) -> None:
        """Remember the weights of layers of the block that are about to be pruned."""
        self._dense |= {layer: layer.weight.detach().clone() for layer in layers}

    def run(self, number: int, counted: Masks) -> tuple[tuple[Tensor, BlockCall], Readings]:
        """Run the block on a batch as if all of its layers were dense.

        Args:
            number: the index of the stream.
            counted: masks of the tokens that count.

        Returns:
            What ``Stream.leave`` takes, and what the layers read that are dense. Experts are not among them:
            the dense model may route other tokens to them.
        """
        stream, found = self.streams[number], Readings({}, {})
        call, raw, sources = stream.call(self._index), dict[nn.Module, Tensor](), self.sources
        last: tuple[Tensor, int, Tensor] | None = None  # an input, its version and the copy of what counts

        def note(layer: Layer, inputs: Tensor) -> None:
            nonlocal last
            if last is None or last[0] is not inputs or last[1] != version_of(inputs):
                read = counted_inputs(layer, inputs, counted, call.tensors)
                last = inputs, version_of(inputs), read.clone()  # the block may write into it
            found.inputs[layer] = last[2]
            if (source := sources.get(layer)) is not None and source in raw:
                residual = counted_inputs(layer, raw[source], counted, call.tensors)
                found.residuals[layer] = residual.clone()

        watched = [layer for layer in self.block.layers if layer not in self._dense and not layer.is_routed]
        noted = (layer.before_calls(partial(note, layer)) for layer in watched)
        with self._restored(), inputs_noted(set(sources.values()), raw.__setitem__), hooks(noted):
            output = call.run(self.block.module, stream.hidden)
        return (output, call), found

    def leave(self) -> None:
        """Pass all batches through the block, which is dense."""
        for stream in self.streams:
            stream.pass_through(self.block.module)

    @contextmanager
    def _restored(self) -> Iterator[None]:
        """Put the dense weights of pruned layers in place in this context."""
        pruned = {layer: layer.weight.detach().clone() for layer in self._dense}
        _write(self._dense)
        try:
            yield
        finally:
            _write(pruned)


def _warn_of_captured(tower: Tower, first: int, count: int) -> None:
    """Warn of blocks at which the errors of the blocks before them are not known."""
    log.warning(
        "propagate=compensated: %d of %d blocks of tower %s (%s), such as %s, read more than the output of"
        " the block before, so errors are known from each of them on, and those of the blocks before are not"
        " compensated there",
        count,
        len(tower.blocks),
        tower.name,
        tower.path,
        tower.blocks[first].name,
    )


def _write(weights: Mapping[Layer, Tensor]) -> None:
    for layer, weight in weights.items():
        layer.weight.data.copy_(weight)
