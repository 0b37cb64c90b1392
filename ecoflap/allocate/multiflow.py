"""MULTIFLOW's sparsities (Farina et al., CVPR 2024): those of magnitude pruning within each modality.

The smallest weights of a tower are counted, and each layer gets the sparsity that removing them would leave
it with. Which weights go is the pruner's choice.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from typing_extensions import override

from ecoflap.allocate.allocation import Allocation
from ecoflap.allocate.groups import blocks_of
from ecoflap.allocate.options import MultiflowOptions
from ecoflap.allocate.protocol import Context, Requires
from ecoflap.allocate.uneven import Uneven
from ecoflap.models.core.layers import Layer
from ecoflap.models.core.prunable import PrunableModel
from ecoflap.prune.global_masks import choose_masks
from ecoflap.score.scores import LAYER, Scores


@dataclass(frozen=True)
class Multiflow(MultiflowOptions, Uneven):
    """The sparsities of magnitude pruning within each tower."""

    @property
    @override
    def requires(self) -> Requires:
        """No scores, and no samples."""
        return Requires("none", weights=True)

    @torch.no_grad()
    @override
    def __call__(
        self,
        model: PrunableModel,
        scores: Scores | None,
        sparsity: float,
        context: Context | None = None,
    ) -> Allocation:
        self.check(sparsity)
        owners = {layer: block for block in blocks_of(model.towers) for layer in block.layers}

        def absolute(layer: Layer) -> Tensor:
            with model.placement.using(owners[layer]):
                return layer.weight.detach().float().abs()

        masks = choose_masks(model, self.scope, sparsity, absolute)
        sizes = model.sizes
        return Allocation({name: int(masks[name].sum()) for name in sizes}, sizes, sparsity, LAYER)
