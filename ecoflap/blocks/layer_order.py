"""The order in which a block calls its layers, and which of them read the same tensor."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial

from torch import Tensor

from ecoflap.blocks.containers import version_of
from ecoflap.models.core.hooks import hooks
from ecoflap.models.core.layers import Layer


class LayerOrder:
    """Records which layers runs of a block call, and what those read.

    Attributes:
        layers: the layers of the block.
        repeated: layers that one run calls several times.
    """

    def __init__(self, layers: Sequence[Layer]) -> None:
        self.layers = layers
        self.repeated: set[Layer] = set()
        self._order: list[Layer] = []
        self._reads: dict[Layer, dict[int, int]] = {}  # {layer: {run: the number of the tensor that it read}}
        self._runs = 0
        self._place = 0  # behind the layer that was called last
        self._seen: list[tuple[Tensor, int]] = []  # the tensors stay alive, so equal identity is the same one

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Record the run of the block in this context."""
        try:
            with hooks(layer.before_calls(partial(self._record, layer)) for layer in self.layers):
                yield
        finally:
            self._seen.clear()
            self._runs, self._place = self._runs + 1, 0

    def _record(self, layer: Layer, inputs: Tensor) -> None:
        version = version_of(inputs)
        known = (number for number, (one, old) in enumerate(self._seen) if one is inputs and old == version)
        number = next(known, len(self._seen))
        if number == len(self._seen):
            self._seen.append((inputs, version))
        if layer not in self._reads:  # another run may have called layers before and after it
            self._order.insert(self._place, layer)
        self._place = self._order.index(layer) + 1
        reads = self._reads.setdefault(layer, {})
        if self._runs in reads:
            self.repeated.add(layer)
        reads[self._runs] = number

    def groups(self) -> list[tuple[Layer, ...]]:
        """The layers in call order, those together that read the same tensor in every run.

        A layer that no run called is alone, behind the one that precedes it in the block, or, if it is an
        expert's, behind one of the experts that was called.
        """
        called: dict[tuple[tuple[int, int], ...], list[Layer]] = {}
        for layer in self._order:
            called.setdefault(tuple(self._reads[layer].items()), []).append(layer)
        groups = [tuple(layers) for layers in called.values()]
        siblings = {layer.stage: layer for layer in self._order if layer.is_expert}
        previous: Layer | None = None
        for layer in self.layers:
            if layer not in self._reads:
                groups.insert(_behind(siblings.get(layer.stage, previous), groups), (layer,))
            previous = layer
        return groups


def _behind(layer: Layer | None, groups: Sequence[tuple[Layer, ...]]) -> int:
    """The place behind the group of a layer; the first one for None."""
    return next((number for number, group in enumerate(groups, start=1) if layer in group), 0)
