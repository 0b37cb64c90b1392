"""Global masks: weights compete with all others of the model or of their tower, without an allocation."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ecoflap.allocate.allocation import Allocation, keep_total
from ecoflap.errors import NumericalError
from ecoflap.models.core.layers import Layer
from ecoflap.models.core.prunable import PrunableModel
from ecoflap.ops import select_globally
from ecoflap.prune.report import PruneReport


def choose_masks(
    model: PrunableModel, scope: str, sparsity: float, metric: Callable[[Layer], Tensor]
) -> dict[str, Tensor]:
    """Choose the weights of the largest metric, of the model or of each tower.

    Args:
        model: the model.
        scope: ``model`` or ``tower``.
        sparsity: the share of the weights to remove, of the model or of each tower.
        metric: the metric of a layer's weights, oriented as the parameter is stored.

    Returns:
        {layer: mask on the CPU, oriented as the parameter is stored, True where kept}.

    Raises:
        NumericalError: if a metric is NaN.
    """
    towers = [tower.layers for tower in model.towers if tower.layers]
    masks: dict[str, Tensor] = {}
    for layers in [model.layers] if scope == "model" else towers:
        keep = keep_total([layer.size for layer in layers], sparsity)
        try:
            chosen = select_globally([lambda layer=layer: metric(layer) for layer in layers], keep)  # type: ignore[misc]
        except ValueError as error:
            raise NumericalError(
                f"{layers[0].name} to {layers[-1].name}: {error}; use model.dtype=float32"
            ) from error
        masks |= {layer.name: mask.cpu() for layer, mask in zip(layers, chosen, strict=True)}
    return masks


@torch.no_grad()
def apply_masks(model: PrunableModel, masks: dict[str, Tensor]) -> None:
    """Set the removed weights to zero."""
    for layer in model.layers:
        layer.weight.masked_fill_(~masks[layer.name].to(layer.weight.device), 0)


def report_masks(
    model: PrunableModel, masks: dict[str, Tensor], sparsity: float, scope: str
) -> tuple[Allocation, PruneReport]:
    """Report what each layer keeps under the applied masks."""
    keep = {name: int(mask.sum()) for name, mask in masks.items()}
    return Allocation(keep, model.sizes, sparsity, scope), PruneReport(masks)
