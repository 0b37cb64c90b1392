"""ER (Mocanu et al. 2018): densities in proportion to (rows + columns) / (rows x columns) of each layer.

So a layer keeps weights in proportion to its rows and columns, and small layers more of their own. A layer
that would keep more than it has stays dense, and the others share the rest. For linear layers this is ERK.
"""

from __future__ import annotations

from dataclasses import dataclass

from typing_extensions import override

from ecoflap.allocate.allocation import Allocation, keep_total
from ecoflap.allocate.groups import layers_of, parts
from ecoflap.allocate.options import EROptions
from ecoflap.allocate.protocol import Context
from ecoflap.allocate.uneven import Uneven
from ecoflap.models.core.prunable import PrunableModel
from ecoflap.ops import water_fill
from ecoflap.score.scores import LAYER, Scores


@dataclass(frozen=True)
class ER(EROptions, Uneven):
    """Densities in proportion to (rows + columns) / (rows x columns) of each layer."""

    @override
    def __call__(
        self,
        model: PrunableModel,
        scores: Scores | None,
        sparsity: float,
        context: Context | None = None,
    ) -> Allocation:
        self.check(sparsity)
        keep: dict[str, int] = {}
        for towers in parts(model, self.scope):
            layers = layers_of(towers)
            of_part = [layer.size for layer in layers]
            kept = water_fill(
                of_part, [sum(layer.shape) for layer in layers], keep_total(of_part, sparsity), cap=1.0
            )
            keep |= {layer.name: count for layer, count in zip(layers, kept, strict=True)}
        return Allocation(keep, model.sizes, sparsity, LAYER)
