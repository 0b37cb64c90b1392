"""Run a block over all batches and prune each of its layers as soon as its input is known.

A run of a batch ends where it reaches a layer that is dense: the layer's input is known, and so is what it
adds to the layer's statistic. Once all batches have come that far, the layer is pruned, and the batches run
again, through it, to the next one. The run that completes a statistic goes on instead; one that is the only
one, as a single batch holds all samples, never ends early. Experts, which read tokens of their own, are
pruned together: all first matrices, and then all second ones.

With a ``DenseTwin``, each run follows one of the dense block, and each layer is pruned with the drift of its
inputs from those in the dense model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cached_property, partial
from typing import NoReturn

import torch
from torch import Tensor, nn

from ecoflap.blocks.containers import version_of
from ecoflap.blocks.dense_twin import DenseTwin
from ecoflap.blocks.drifts import GroupDrift, Readings, SharedInput
from ecoflap.blocks.input_statistics import InputsComplete, counted_inputs, never_ran, require_tokens
from ecoflap.blocks.residual_streams import inputs_noted
from ecoflap.blocks.statistics import Statistic
from ecoflap.blocks.stream import Stream
from ecoflap.blocks.token_choice import Masks
from ecoflap.distributed.collectives import gathered
from ecoflap.errors import UserError
from ecoflap.models.core.hooks import hooks
from ecoflap.models.core.layers import Layer
from ecoflap.models.core.towers import Block

Group = tuple[Layer, ...]
Stage = tuple[int, bool]
PruneGroups = Callable[[Sequence[SharedInput]], None]


class _Progress:
    """How far a batch has come.

    Attributes:
        number: its index.
        stream: its hidden states and arguments.
        tokens: masks of the tokens that count; empty where all do.
        waits: the stage with the dense layers that it has reached; None while it reaches pruned ones, and
            once it has left the block.
        counted: the groups whose statistic holds its tokens.
        masks: of the tokens that count, and the tensors that they don't apply to; of the present run.
        called: the layers that the present run has called.
        given: the inputs, with their versions, of groups of which it has called some layers and not yet all.
        dense: what layers read in the dense model.
        residuals: what the sources of residual streams have read in the present run.
    """

    def __init__(self, number: int, stream: Stream, tokens: Masks) -> None:
        self.number, self.stream, self.tokens = number, stream, tokens
        self.dense = Readings({}, {})
        self.waits: Stage | None = None
        self.counted: set[Group] = set()
        self.begin([])

    def begin(self, foreign: list[Tensor]) -> None:
        """Begin a run."""
        self.waits, self.masks = None, (self.tokens, foreign)
        self.residuals: dict[nn.Module, Tensor] = {}
        self.called: set[Layer] = set()
        self.given: dict[Group, tuple[Tensor, int]] = {}


class LayerByLayer:
    """Prunes the layers of a block in call order."""

    def __init__(
        self,
        block: Block,
        groups: Sequence[Group],
        statistic: type[Statistic],
        prune: PruneGroups,
        twin: DenseTwin | None = None,
    ) -> None:
        """Prepare to run.

        Args:
            block: dense.
            groups: its layers in call order, those together that read the same tensor.
            statistic: the statistic to gather of each group's input.
            prune: prunes groups of layers in place, each with its statistic and, with a twin, its drifts.
            twin: the dense model, at the same block; None to prune without the drift.
        """
        self.block, self.kind, self.prune, self.twin = block, statistic, prune, twin
        self._of = {layer: group for group in groups for layer in group}
        self._stages: dict[Stage, list[Group]] = {}  # in call order
        for group in groups:
            self._stages.setdefault(group[0].stage, []).append(group)
        self._statistics: dict[Group, Statistic] = {}  # of groups that batches wait at
        self._drifts: dict[Group, GroupDrift] = {}
        self._sources = {} if twin is None else twin.sources
        self._pruned: set[Stage] = set()
        self._batches: list[_Progress] = []
        self._ready: list[_Progress] = []  # can go on, as the layers that they waited at are pruned
        self._running: _Progress | None = None

    def run(self, index: int, streams: Sequence[Stream], tokens: Sequence[Masks]) -> None:
        """Run the block over all batches; its outputs become the next block's inputs.

        Args:
            index: the index of the block in its tower.
            streams: the batches with the inputs of the block.
            tokens: for each of them, masks of the tokens that count.

        Raises:
            UserError: if a batch calls a layer again after it was pruned, or layers that read the same tensor
                in other batches don't in this one, or a layer never runs.
        """
        numbered = enumerate(zip(streams, tokens, strict=True))
        self._batches = [_Progress(number, stream, masks) for number, (stream, masks) in numbered]
        self._ready = list(self._batches)
        reached = (layer.before_calls(partial(self._reach, layer)) for layer in self._of)
        with inputs_noted(set(self._sources.values()), self._note_residual), hooks(reached):
            while True:
                while self._ready:
                    self._run_on(self._ready.pop(), index)
                if (stage := self._next) is None:
                    break
                self._prune(stage)
        for stage in [stage for stage in self._stages if stage not in self._pruned]:
            if not (layer := self._stages[stage][0][0]).is_routed:
                raise never_ran(layer)
            self._prune(stage)  # an expert that no token reaches, now that all before it is pruned

    def _run_on(self, batch: _Progress, index: int) -> None:
        """Run a batch from the beginning of the block to the next dense stage, or to the block's end."""
        if self.twin is not None:
            self._running = None
            dense_end, batch.dense = self.twin.run(batch.number, batch.tokens)
        call = batch.stream.call(index)
        batch.begin(call.tensors)
        self._running = batch
        with suppress(InputsComplete):
            output = call.run(self.block.module, batch.stream.hidden)
            for group in batch.given:
                _refuse(next(layer for layer in group if layer not in batch.called))
            if batch.waits is None:
                batch.stream.leave(output, call)
                if self.twin is not None:
                    self.twin.streams[batch.number].leave(*dense_end)
        batch.dense, batch.residuals = Readings({}, {}), {}

    def _reach(self, layer: Layer, inputs: Tensor) -> None:
        """Let a run call a layer that is pruned, or end it in front of a dense one."""
        batch, group = self._running, self._of[layer]
        if batch is None:  # the dense block runs
            return
        if batch.waits not in (None, layer.stage):
            raise InputsComplete
        if layer in batch.called:
            _refuse(layer)
        if batch.called.isdisjoint(group):
            if group not in batch.counted:  # a group that it has counted is pruned by now
                self._enter(batch, group, inputs)
            batch.given[group] = inputs, version_of(inputs)
        given, version = batch.given[group]
        if given is not inputs or version != version_of(inputs):
            _refuse(layer)
        batch.called.add(layer)
        if batch.called.issuperset(group):
            del batch.given[group]

    def _enter(self, batch: _Progress, group: Group, inputs: Tensor) -> None:
        """A run reaches a group for the first time: prune the group if this run is the last one to come.

        In front of the experts of a stage, which read tokens of their own, a run goes on until it has reached
        them all, with outputs that are dense and lead nowhere.
        """
        stage = group[0].stage
        if stage in self._pruned:
            _refuse(group[0])
        self._count(batch, group, counted_inputs(group[0], inputs, *batch.masks))
        batch.counted.add(group)
        batch.waits = stage
        if group[0].is_expert:
            return
        if self._ready or self._next != stage:
            raise InputsComplete
        batch.waits = None
        self._prune(stage)

    def _count(self, batch: _Progress, group: Group, inputs: Tensor) -> None:
        """Add the inputs [tokens, cols] of a batch to the statistic of a group, and to their drift."""
        self._count_none(group, inputs.device)
        self._statistics[group].take(inputs, group[0].name)
        if group in self._drifts:
            residuals = {
                layer: counted_inputs(layer, batch.residuals[source], *batch.masks)
                for layer, source in self._sources.items()
                if layer in group and source in batch.residuals
            }
            self._drifts[group].update(batch.dense, inputs, residuals)

    def _count_none(self, group: Group, device: torch.device) -> None:
        """Begin the statistic and the drift of a group with no tokens, unless they have begun."""
        if group not in self._statistics:
            self._statistics[group] = self.kind(group[0].shape[1], device)
            if self.twin is not None and not group[0].is_routed:
                self._drifts[group] = GroupDrift(group, self._sources, device)

    def _note_residual(self, source: nn.Module, residual: Tensor) -> None:
        if self._running is not None:  # not the dense block
            self._running.residuals[source] = residual

    @cached_property
    def _next(self) -> Stage | None:
        """The stage that is called before all others that batches of any process wait at; None at the end.

        The processes agree on it once, when all of their batches wait or have left the block, and each of
        them prunes it next.
        """
        stages = list(self._stages)
        waiting = {stages.index(batch.waits) for batch in self._batches if batch.waits is not None}
        first = min(set().union(*gathered(waiting)), default=None)
        return None if first is None else stages[first]

    def _prune(self, stage: Stage) -> None:
        """Prune the layers of a stage; the batches that wait at it can go on."""
        known: list[SharedInput] = []
        for group in self._stages[stage]:
            self._count_none(group, group[0].weight.device)  # no batch of this process may have reached it
            statistic, drift = self._statistics.pop(group), self._drifts.pop(group, None)
            statistic.combine()
            if group[0].is_routed and not statistic.tokens:
                statistic = self.kind.unseen(group[0].shape[1], group[0].weight.device)
            if self.twin is not None:
                self.twin.remember(group)
            if drift is not None:
                drift.combine()
            drifts = None if drift is None else drift.value
            known.append(SharedInput(group, require_tokens(group[0], statistic), drifts))
        self.prune(known)
        self._pruned.add(stage)
        vars(self).pop("_next", None)
        self._ready = [batch for batch in self._batches if batch.waits == stage]


def _refuse(layer: Layer) -> NoReturn:
    """Refuse a batch that calls a layer otherwise than the calls so far have shown.

    Raises:
        UserError: always.
    """
    raise UserError(
        f"{layer.name} is called several times, or with another input than layers that it shares one with in"
        " other batches, so its input is not known when propagate=layer or compensated prunes it; use"
        " propagate=pruned, or leave it out with skip_layers"
    )
