"""MULTIFLOW's sparsities (Farina et al., CVPR 2024): those of magnitude pruning within each modality.

The smallest weights of a tower are counted, and each layer gets the sparsity that removing them would leave
it with. Which weights go is the pruner's choice.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from ecoflap.allocate.allocation import Allocation, keep_total
from ecoflap.allocate.groups import parts
from ecoflap.allocate.options import MultiflowOptions
from ecoflap.allocate.protocol import Context, Requires
from ecoflap.allocate.uneven import Uneven
from ecoflap.errors import NumericalError, require_choices
from ecoflap.models.core.layers import Layer
from ecoflap.models.core.prunable import PrunableModel
from ecoflap.models.core.towers import Block
from ecoflap.ops import select_globally
from ecoflap.score.scores import LAYER, Scores


@dataclass(frozen=True)
class Multiflow(MultiflowOptions, Uneven):
    """The sparsities of magnitude pruning within each tower."""

    def __post_init__(self) -> None:
        require_choices("allocation", self)

    @property
    def requires(self) -> Requires:
        """No scores, and no samples."""
        return Requires("none", weights=True)

    @torch.no_grad()
    def __call__(
        self,
        model: PrunableModel,
        scores: Scores | None,
        sparsity: float,
        context: Context | None = None,
    ) -> Allocation:
        """Decide how many weights each layer keeps.

        Raises:
            UserError: if the target is outside [0, 1).
            NumericalError: if a weight is NaN.
        """
        self.check(sparsity)
        sizes = {layer.name: layer.size for layer in model.layers}
        keep: dict[str, int] = {}
        for towers in parts(model, self.scope):
            owners = {layer: block for tower in towers for block in tower.blocks for layer in block.layers}
            total = keep_total([layer.size for layer in owners], sparsity)
            reads = [partial(_absolute, model, block, layer) for layer, block in owners.items()]
            try:
                masks = select_globally(reads, total)
            except ValueError as error:
                raise NumericalError(f"tower {towers[0].name}: {error}; check the weights") from error
            keep |= {layer.name: int(mask.sum()) for layer, mask in zip(owners, masks, strict=True)}
        return Allocation({name: keep[name] for name in sizes}, sizes, sparsity, LAYER)


def _absolute(model: PrunableModel, block: Block, layer: Layer) -> Tensor:
    """The absolute values of a layer's weights, fp32, wherever they are stored."""
    with model.placement.using(block):
        return layer.weight.detach().float().abs()
