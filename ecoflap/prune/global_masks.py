"""Global masks: weights compete with all others of the model or of their tower, without an allocation."""

from __future__ import annotations

import time
from collections.abc import Callable, MutableMapping

import torch
from torch import Tensor

from ecoflap.allocate.allocation import Allocation, keep_total
from ecoflap.errors import NumericalError
from ecoflap.models.core.layers import Layer
from ecoflap.models.core.prunable import PrunableModel
from ecoflap.ops import select_globally
from ecoflap.prune.protocol import OnBlock
from ecoflap.prune.report import BlockReport, PruneReport


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
    model: PrunableModel,
    masks: dict[str, Tensor],
    sparsity: float,
    scope: str,
    started: float,
    on_block: OnBlock,
) -> tuple[Allocation, PruneReport]:
    """Report what each layer keeps under the applied masks, and what was removed since ``started``."""
    keep = {name: int(mask.sum()) for name, mask in masks.items()}
    allocation = Allocation(keep, model.sizes, sparsity, scope)
    return allocation, report_blocks(model, masks, allocation, started, on_block)


def report_blocks(
    model: PrunableModel,
    masks: MutableMapping[str, Tensor],
    allocation: Allocation,
    started: float,
    on_block: OnBlock,
) -> PruneReport:
    """Report every block of a model that was pruned as a whole.

    Args:
        model: pruned.
        masks: {layer: mask as its parameter is stored}.
        allocation: how many weights each layer keeps.
        started: when pruning began, by ``time.perf_counter``.
        on_block: called with the report of each block.
    """
    report = PruneReport(masks, dict.fromkeys(masks))
    for tower in model.towers:
        for block in tower.blocks:
            names = allocation.inside(block.name)
            realised = allocation.sparsity_of(names) if names else 0.0
            seconds = time.perf_counter() - started
            report.blocks.append(BlockReport(tower.name, block.name, realised, None, seconds))
            on_block(report.blocks[-1])
    return report
