"""Gather the statistics of the inputs of a block's layers while it runs.

Layers that read the same tensor (q, k and v; gate and up) share one statistic.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from weakref import ref

from torch import Size, Tensor

from ecoflap.blocks.containers import version_of
from ecoflap.blocks.statistics import Statistic
from ecoflap.distributed.collectives import gathered
from ecoflap.distributed.processes import size
from ecoflap.errors import UserError
from ecoflap.models.core.hooks import hooks
from ecoflap.models.core.layers import Layer

Shapes = tuple[Size, ...]
Call = tuple[Layer, Size]
"""A layer, and the shape of what it reads."""


class InputsComplete(BaseException):
    """Ends the run of a block once the inputs of all its layers are known.

    It derives from BaseException so that no model code catches it.
    """


class InputStatistics:
    """Statistics of the layers of one block, filled while the block runs under ``gathering``.

    Attributes:
        kind: the statistic to gather.
        of: the statistic of each layer; layers that read the same input share one.
    """

    def __init__(self, kind: type[Statistic]) -> None:
        self.kind = kind
        self.of: dict[Layer, Statistic] = {}
        self._counted: tuple[Tensor, ...] = ()
        self._foreign: list[Tensor] = []
        self._groups: dict[Layer, tuple[Layer, ...]] = {}  # of layers with a statistic: those that share it
        self._unseen: dict[Layer, Statistic] = {}
        # What calls in this run read that is in no layer's statistic yet, and the tensors. A reference to one
        # that the model has freed is none, and so equals no tensor that takes its place.
        self._reads: dict[Layer, list[Statistic]] = {}
        self._seen: list[tuple[ref[Tensor], int, Statistic]] = []
        self._layers: Sequence[Layer] = ()
        self._calls: list[Call] = []
        self._shapes: Shapes | None = None
        self._ended: dict[Shapes | None, list[Call]] = {}  # the calls of a run that went to its end
        self._steady = True  # whether each of them called every layer once, and no router chooses layers

    @contextmanager
    def gathering(self, layers: Sequence[Layer]) -> Iterator[None]:
        """Gather the inputs of layers of the block while it runs in this context."""
        self._layers, self._steady = layers, not any(layer.is_routed for layer in layers)

        def watch(layer: Layer) -> Callable[[Tensor], None]:
            def note(inputs: Tensor) -> None:
                self._observe(layer, inputs)
                self._calls.append((layer, inputs.shape))
                if self._steady and self._calls == self._ended.get(self._shapes):
                    raise InputsComplete

            return note

        with hooks(layer.before_calls(watch(layer)) for layer in layers):
            yield
        self._settle()

    def begin_run(
        self, counted: tuple[Tensor, ...], foreign: list[Tensor], shapes: Shapes | None = None
    ) -> None:
        """Set the tokens that count in the next run of the block; called before each run.

        Args:
            counted: masks [batch, tokens] of the sequence and of parts that some layers read alone; empty
                where all tokens count.
            foreign: tensors from outside the tower, to which this tower's masks don't apply.
            shapes: of all tensors that enter the block, if the run may raise ``InputsComplete``, which saves
                the rest of the block's computation: where all runs so far have called every layer once, and
                one with these shapes ran to its end, with the same calls so far.
        """
        self._settle()
        if self._shapes is not None:
            self._ended.setdefault(self._shapes, self._calls)
            self._steady = self._steady and Counter(layer for layer, _ in self._calls) == Counter(
                self._layers
            )
        self._calls, self._shapes = [], shapes
        self._counted, self._foreign = counted, foreign

    def _observe(self, layer: Layer, inputs: Tensor) -> None:
        """Add the inputs to the layer's statistic; to a shared one, once all of its layers have read them."""
        group = self._groups.get(layer, ())
        if len(group) == 1:
            self.of[layer].take(self._counted_of(layer, inputs), layer.name)
            return
        reads = self._reads.setdefault(layer, [])
        reads.append(self._of_tensor(layer, inputs))
        if group and all(self._reads.get(other) == reads for other in group):
            for read in reads:
                self.of[layer].add(read)
            for other in group:
                del self._reads[other]
            self._seen = [seen for seen in self._seen if seen[2] not in reads]

    def _of_tensor(self, layer: Layer, inputs: Tensor) -> Statistic:
        """The statistic of one tensor; computed once for all layers that read it before it is written to."""
        current = version_of(inputs)
        for tensor, version, statistic in self._seen:
            if tensor() is inputs and version == current:
                return statistic
        statistic = self.kind(inputs.shape[-1], inputs.device)
        statistic.take(self._counted_of(layer, inputs), layer.name)
        self._seen.append((ref(inputs), current, statistic))
        return statistic

    def _settle(self) -> None:
        """Share one statistic among the layers that read the same tensors in each of their calls of each run.

        They begin to share it in their first run. If they read different ones in a later run, each gets a
        statistic of its own, with what they have read together so far.
        """
        alike: dict[tuple[Statistic, ...], list[Layer]] = {}
        for layer in dict.fromkeys(one for read in self._reads for one in self._groups.get(read, (read,))):
            before = [self.of[layer]] if layer in self.of else []
            parts = tuple(before + self._reads.get(layer, []))
            alike.setdefault(parts, []).append(layer)
        for parts, layers in alike.items():
            shared = parts[0] if len(parts) == 1 else self._total(layers[0], parts)
            for layer in layers:
                self.of[layer], self._groups[layer] = shared, tuple(layers)
        self._reads.clear()
        self._seen.clear()

    def _total(self, layer: Layer, reads: Sequence[Statistic]) -> Statistic:
        """The sum of the statistics of several calls of a layer."""
        total = self.kind(layer.shape[1], layer.weight.device)
        for read in reads:
            total.add(read)
        return total

    def combine(self, layers: Sequence[Layer]) -> None:
        """Add up what the processes of the run have gathered, each over its samples.

        Layers share a statistic if they do so in every process that has seen them; experts may be reached in
        some processes alone.

        Args:
            layers: the layers of the block, the same in all processes.
        """
        if size() == 1:
            return
        places = {layer: place for place, layer in enumerate(layers)}
        leaders = {id(self.of[layer]): places[layer] for layer in reversed(layers) if layer in self.of}
        seen = gathered({places[layer]: leaders[id(statistic)] for layer, statistic in self.of.items()})
        total: dict[tuple[int | None, ...], Statistic] = {}
        for place, layer in enumerate(layers):
            if all(place not in one for one in seen):
                continue
            group = tuple(one.get(place) for one in seen)
            if group not in total:
                own = self.of.get(layer) or self.kind(layer.shape[1], layer.weight.device)
                total[group] = copy(own)
                total[group].combine()
            self.of[layer] = total[group]

    def _counted_of(self, layer: Layer, inputs: Tensor) -> Tensor:
        """The inputs of the tokens that count, [tokens, cols]."""
        return counted_inputs(layer, inputs, self._counted, self._foreign)

    def __getitem__(self, layer: Layer) -> Statistic:
        if layer.is_routed and (layer not in self.of or not self.of[layer].tokens):
            if layer not in self._unseen:
                self._unseen[layer] = self.kind.unseen(layer.shape[1], layer.weight.device)
            return self._unseen[layer]
        if layer not in self.of:
            raise never_ran(layer)
        return require_tokens(layer, self.of[layer])


def counted_inputs(
    layer: Layer, inputs: Tensor, counted: Sequence[Tensor], foreign: Sequence[Tensor]
) -> Tensor:
    """The inputs of the tokens that count, [tokens, cols].

    All that a layer reads counts where the masks say nothing of it: tokens that a router has selected unknown
    to the layer, the sequence of another tower, tokens that were merged.

    Args:
        layer: reads the inputs, in a call that is under way.
        inputs: [..., cols].
        counted: masks of the tokens that count; see ``InputStatistics.begin_run``.
        foreign: tensors that the masks don't apply to.
    """
    tokens, routed = inputs.detach().reshape(-1, inputs.shape[-1]), layer.routed
    if routed is not None:
        of_experts = next((mask for mask in counted if mask.numel() == routed.tokens), None)
        return tokens if of_experts is None else tokens[of_experts.flatten()[routed.positions]]
    mask = next((mask for mask in counted if _fits(mask, inputs.shape[:-1])), None)
    if mask is None or layer.is_routed or any(inputs is other for other in foreign):
        return tokens
    return tokens[mask.flatten()]


def _fits(mask: Tensor, rows: Size) -> bool:
    """Whether a mask [batch, tokens] is of inputs of some rows.

    These are [batch, tokens]; [batch, 1, tokens], as for ``kv_b_proj`` of DeepSeek; or all tokens in a row.
    """
    flat = mask.numel()
    return rows in ((flat,), (1, flat)) or (rows.numel() == flat and rows[:1] + rows[-1:] == mask.shape)


def require_tokens(layer: Layer, statistic: Statistic) -> Statistic:
    """A statistic that holds tokens.

    Raises:
        UserError: if none of the tokens that the layer reads counts.
    """
    if not statistic.tokens:
        raise UserError(
            f"{layer.name} reads none of the tokens that count, so nothing is known of its inputs; leave it"
            " out with skip_layers, or use tokens=all"
        )
    return statistic


def never_ran(layer: Layer) -> UserError:
    """The error of a layer that no batch reached."""
    return UserError(
        f"{layer.name} never ran on the calibration data, so nothing is known of its inputs; leave it out"
        " with skip_layers"
    )
