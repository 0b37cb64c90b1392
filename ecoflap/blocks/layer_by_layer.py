"""Run a block over all batches and prune each of its layers as soon as its input is known.

A run of a batch ends where it reaches a layer that is dense: the layer's input is known, and so is what it
adds to the layer's statistic. Once all batches have come that far, the layer is pruned, and the batches run
again, through it, to the next one. The run that completes a statistic goes on instead; one that is the only
one, as a single batch holds all samples, never ends early.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any, NoReturn

from torch import Tensor, nn

from ecoflap.blocks.containers import version_of
from ecoflap.blocks.statistics import InputsComplete, Statistic, never_ran, real_tokens
from ecoflap.blocks.stream import Stream
from ecoflap.errors import UserError
from ecoflap.models.core.layers import Layer
from ecoflap.models.core.towers import Block

Group = tuple[Layer, ...]
PruneGroup = Callable[[Group, Statistic], None]


class _Batch:
    """How far a batch has come.

    Attributes:
        stream: its hidden states and arguments.
        waits: the dense layers that it has reached; None while it runs, and once it has left the block.
        counted: the groups whose statistic holds its tokens.
        masks: of its real tokens, and the tensors that they don't apply to; of the present run.
        called: the layers that the present run has called.
        given: the inputs, with their versions, of groups of which it has called some layers and not yet all.
    """

    def __init__(self, stream: Stream) -> None:
        self.stream = stream
        self.waits: Group | None = None
        self.counted: set[Group] = set()
        self.begin((), [])

    def begin(self, counted: tuple[Tensor, ...], foreign: list[Tensor]) -> None:
        """Begin a run."""
        self.waits, self.masks = None, (counted, foreign)
        self.called: set[Layer] = set()
        self.given: dict[Group, tuple[Tensor, int]] = {}


class LayerByLayer:
    """A block on its way from dense to pruned."""

    def __init__(
        self, block: Block, groups: Sequence[Group], statistic: type[Statistic], prune: PruneGroup
    ) -> None:
        """Prepare to run.

        Args:
            block: dense.
            groups: its layers in call order, those together that read the same tensor.
            statistic: the statistic to gather of each group's input.
            prune: prunes the layers of a group in place.
        """
        self.block, self.kind, self.prune = block, statistic, prune
        self._of = {layer: group for group in groups for layer in group}
        self._places = {group: place for place, group in enumerate(groups)}
        self._statistics: dict[Group, Statistic] = {}  # of groups that batches wait at
        self._pruned: set[Group] = set()
        self._batches: list[_Batch] = []
        self._behind: list[_Batch] = []  # those that can go on, as the layers that they waited at are pruned
        self._running: _Batch | None = None

    def run(self, index: int, streams: Sequence[Stream]) -> None:
        """Run the block over all batches; its outputes become the next block's inputs.

        Args:
            index: the index of the block in its tower.
            streams: the batches with the inputs of the block.

        Raises:
            UserError: if a batch calls a layer again after it was pruned, or layers that read the same tensor
                in other batches don't in this one, or a layer never runs.
        """
        self._batches = [_Batch(stream) for stream in streams]
        self._behind = list(self._batches)
        with self._watching():
            while self._behind:
                self._run_on(self._behind.pop(), index)
                if not self._behind and (group := self._earliest()) is not None:
                    self._prune(group)
        for group in self._places:
            if group not in self._pruned:
                if not group[0].is_expert:
                    raise never_ran(group[0])
                self.prune(group, self._unseen(group[0]))

    @contextmanager
    def _watching(self) -> Iterator[None]:
        """Observe the calls of the block's layers in this context."""
        handles = [layer.module.register_forward_pre_hook(partial(self._reach, layer)) for layer in self._of]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _run_on(self, batch: _Batch, index: int) -> None:
        """Run a batch from the beginning of the block to the next dense layer, or to the block's end."""
        call = batch.stream.call(index)
        batch.begin(batch.stream.counted, call.tensors)
        self._running = batch
        with suppress(InputsComplete):
            output = call.run(self.block.module, batch.stream.hidden)
            for group in batch.given:
                _refuse(next(layer for layer in group if layer not in batch.called))
            batch.stream.leave(output, call)

    def _reach(self, layer: Layer, _: nn.Module, arguments: tuple[Any, ...]) -> None:
        """Let a run call a layer that is pruned, or end it in front of a dense one."""
        batch, group, inputs = self._running, self._of[layer], arguments[0]
        assert batch is not None
        if layer in batch.called:
            _refuse(layer)
        if batch.called.isdisjoint(group):
            self._enter(batch, group, inputs)
            batch.given[group] = inputs, version_of(inputs)
        given, version = batch.given[group]
        if given is not inputs or version != version_of(inputs):
            _refuse(layer)
        batch.called.add(layer)
        if batch.called.issuperset(group):
            del batch.given[group]

    def _enter(self, batch: _Batch, group: Group, inputs: Tensor) -> None:
        """A run reaches the first layer of a group: prune the group if this run is the last one to come."""
        if group in self._pruned:
            if group not in batch.counted:
                _refuse(group[0])
            return
        if group not in self._statistics:
            self._statistics[group] = self.kind(inputs.shape[-1], inputs.device)
        self._statistics[group].update(real_tokens(group[0], inputs, *batch.masks).detach())
        batch.counted.add(group)
        batch.waits = group
        if self._behind or self._earliest() is not group:
            raise InputsComplete
        batch.waits = None
        self._prune(group)

    def _unseen(self, layer: Layer) -> Statistic:
        """The statistic of an expert that no token reaches."""
        return self.kind.unseen(layer.shape[1], layer.weight.device)

    def _earliest(self) -> Group | None:
        """The group that is called before all others that batches wait at."""
        waiting = [batch.waits for batch in self._batches if batch.waits is not None]
        return min(waiting, key=self._places.__getitem__, default=None)

    def _prune(self, group: Group) -> None:
        """Prune a group; the batches that wait at it can go on."""
        statistic = self._statistics.pop(group)
        self.prune(group, statistic if statistic.tokens else self._unseen(group[0]))
        self._pruned.add(group)
        self._behind = [batch for batch in self._batches if batch.waits is group]


def _refuse(layer: Layer) -> NoReturn:
    """Refuse a batch that calls a layer otherwise than the calls so far have shown.

    Raises:
        UserError: always.
    """
    raise UserError(
        f"{layer.name} is called several times, or with another input than layers that it shares one with in"
        " other batches, so its input is not known when propagate=layer prunes it; use propagate=pruned, or"
        " leave it out with skip_layers"
    )
