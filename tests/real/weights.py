"""What the tests of real models share: the slow reference on the first blocks, and losses before and after
pruning.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from ecoflap.allocate.water_filling import WaterFilling
from ecoflap.data.calibration_set import CalibrationSet
from ecoflap.models.core.prunable import PrunableModel
from ecoflap.models.core.towers import Selection
from ecoflap.prune.driver import prune
from ecoflap.prune.wanda import Wanda
from tests.prune import reference


def load(loader: Any) -> PrunableModel:
    return loader.load(torch.device("cpu"), Selection())


def first_blocks(model: PrunableModel, count: int) -> PrunableModel:
    """The model with only the layers of each tower's first blocks to prune; the towers stay whole."""
    keep = lambda tower: tuple(
        replace(block, layers=block.layers if place < count else ())
        for place, block in enumerate(tower.blocks)
    )
    return replace(model, towers=tuple(replace(tower, blocks=keep(tower)) for tower in model.towers))


def assert_equals_reference(loader: Any, calibration: CalibrationSet, blocks: int) -> None:
    """Wanda at 0.5, pruned block by block, is what layer-by-layer pruning with full forward passes makes."""
    model, other = (first_blocks(load(loader), blocks) for _ in range(2))
    allocation = WaterFilling()(model, None, 0.5)
    report = prune(model, calibration, Wanda(), allocation, batch_size=2)
    masks = reference.prune(other, calibration, reference.wanda, allocation.keep)
    for layer, expected in zip(model.layers, other.layers, strict=True):
        differing = int((report.masks[layer.name] != masks[layer.name]).sum())
        assert differing <= layer.size * 1e-4, layer.name  # two scores that rounding swaps
        assert not layer.weight[~report.masks[layer.name]].any()
        assert torch.equal(
            layer.weight[report.masks[layer.name] & masks[layer.name]],
            expected.weight[report.masks[layer.name] & masks[layer.name]],
        )


def pruned_with(loader: Any, calibration: CalibrationSet, pruner: Any, sparsity: float) -> PrunableModel:
    model = load(loader)
    prune(model, calibration, pruner, WaterFilling()(model, None, sparsity), batch_size=8)
    return model
