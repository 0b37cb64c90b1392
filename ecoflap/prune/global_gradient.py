"""Global gradient pruning, a baseline of the paper: all weights compete by |w| times the mean |gradient|.

The sparsity rises in steps, p_i = p^(T / i), and each step computes the gradients of the model pruned so far.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from typing_extensions import override

from ecoflap.allocate.allocation import Allocation
from ecoflap.blocks.footprint import Footprint
from ecoflap.blocks.loss_batches import loss_batches
from ecoflap.console.progress import track
from ecoflap.data.batch import samples_in
from ecoflap.data.calibration_set import CalibrationSet
from ecoflap.errors import require_choices, require_positive
from ecoflap.models.core.forward_modes import quiet_forward
from ecoflap.models.core.layers import Layer
from ecoflap.models.core.prunable import PrunableModel
from ecoflap.prune.global_masks import apply_masks, choose_masks, report_masks
from ecoflap.prune.options import GlobalGradientOptions
from ecoflap.prune.protocol import ModelPruner
from ecoflap.prune.report import PruneReport
from ecoflap.score.first_order import scaled_gradients
from ecoflap.score.scores import loss_is_independent

TINY = torch.finfo(torch.float32).tiny


@dataclass(frozen=True)
class GlobalGradient(GlobalGradientOptions, ModelPruner):
    """Remove the weights of smallest |w| times mean |gradient|, in steps: global first-order pruning."""

    def __post_init__(self) -> None:
        require_choices("pruner", self)
        require_positive("pruner", self, "iterations", "samples", "batch_size")

    @property
    @override
    def footprint(self) -> Footprint:
        """A backward pass, and sums and gradients of all weights."""
        return Footprint("backward", copies=2, batch_size=self.batch_size)

    @override
    def prune(
        self, model: PrunableModel, calibration: CalibrationSet | None, sparsity: float, seed: int = 0
    ) -> tuple[Allocation, PruneReport]:
        assert calibration is not None
        masks = dict[str, Tensor]()
        for step in range(1, self.iterations + 1):
            batches = loss_batches(model, calibration.take(self.samples), self.batch_size)
            reached = sparsity if step == self.iterations else sparsity ** (self.iterations / step)
            # Not kept in a variable: the next step's sums would lie beside these.
            masks = choose_masks(
                model,
                self.scope,
                reached,
                partial(_metric, gradients=mean_gradients(model, batches), kept=masks),
            )
            apply_masks(model, masks)
        return report_masks(model, masks, sparsity, self.scope)


def _metric(layer: Layer, gradients: Mapping[str, Tensor], kept: Mapping[str, Tensor]) -> Tensor:
    """The weights of a layer by |w| times mean |gradient|; those that an earlier step removed rank last."""
    value = layer.weight.detach().float().cpu().abs() * gradients[layer.name]
    return torch.where(kept[layer.name], value + TINY, 0.0) if layer.name in kept else value


def mean_gradients(model: PrunableModel, batches: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Mean over samples of each batch's |gradient|.

    Returns:
        {layer: mean in fp32 on the CPU, oriented as the parameter is stored}.

    Raises:
        NumericalError: if a loss is not finite.
        UserError: if the losses depend on none of the layers.
    """

    def keep(layer: Layer, gradient: Tensor, _: float) -> Tensor:
        return gradient.to(layer.weight.dtype).cpu()  # scaled, so that half precision holds it

    sums = {layer.name: torch.zeros(layer.weight.shape, dtype=torch.float32) for layer in model.layers}
    total = sum(samples_in(batch) for batch in batches)
    with quiet_forward(model.module):
        for batch in track(batches, "gradients", total=len(batches)):
            gradients, scale = scaled_gradients(model, batch, keep, recompute=True)
            for layer, gradient in gradients.items():
                sums[layer.name].add_(gradient.float().abs(), alpha=samples_in(batch) / total / scale)
            del gradients  # or they would lie beside those of the next batch
    if not any(bool(gradient.any()) for gradient in sums.values()):
        raise loss_is_independent()
    return sums
