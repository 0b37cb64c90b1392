"""Move a model from one trial allocation to the next one by pruning only the layers that differ."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping

from torch import Tensor

from ecoflap.allocate.trial import Group, TrialPruner
from ecoflap.blocks.footprint import KEPT_BYTES


class LayerTrials:
    """Prunes a model in place, layer by layer.

    The least recently used weights are forgotten once the others fill the cache, and pruned anew when they
    are needed again.

    Attributes:
        dense: {layer: its number of weights}.
    """

    def __init__(self, trial: TrialPruner, cache_bytes: int = KEPT_BYTES) -> None:
        """Begin with the dense model.

        Args:
            trial: prunes the layers; nothing else may prune with it meanwhile.
            cache_bytes: the size of the cache.
        """
        self._trial = trial
        self._alone = {
            layer.name: Group(group.block, (layer,), (dense,), group.statistic)
            for group in trial.groups
            for layer, dense in zip(group.layers, group.dense, strict=True)
        }
        self.dense = {name: group.dense[0].numel() for name, group in self._alone.items()}
        self._now = dict(self.dense)
        self._cache: OrderedDict[tuple[str, int], Tensor] = OrderedDict()
        self._room = cache_bytes

    def prune(self, keep: Mapping[str, int]) -> None:
        """Prune every layer to the given counts, or the nearest that the mask can have."""
        for name, count in self._trial.fitted(keep).items():
            if self._now[name] != count:
                self._trial.write(self._alone[name], [self._weight(name, count)])
                self._now[name] = count

    def _weight(self, name: str, count: int) -> Tensor:
        """The weights [rows, cols] of a layer that keeps ``count`` of them."""
        group, key = self._alone[name], (name, count)
        dense = group.dense[0]
        if count == dense.numel():
            return dense
        if key in self._cache:
            self._cache.move_to_end(key)
            return self._cache[key]
        weight = self._trial.solve(group, {name: count})[0].to(dense)
        self._cache[key] = weight
        self._room -= weight.nbytes
        while self._room < 0:
            self._room += self._cache.popitem(last=False)[1].nbytes
        return weight
