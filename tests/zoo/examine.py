"""What comes of one architecture: pruned and scored by every algorithm, or refused."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from ecoflap.blocks.layer_calls import require_calls
from ecoflap.data.calibration_set import CalibrationSet
from ecoflap.errors import UserError
from ecoflap.models.core.prunable import PrunableModel
from tests.zoo.architecture import Architecture, reached_towers
from tests.zoo.compare import ALGORITHMS, Compare, Comparison


@dataclass
class Row:
    """What came of one architecture.

    Attributes:
        architecture: it.
        towers: those that its samples reach, which are pruned.
        layers: how many are pruned.
        share: of the weights of the blocks, what is in layers.
        refusal: the line that a run refuses it with before it scores; null where it doesn't.
        skipped: the layers that the line says to leave dense, as has then been done.
        found: {algorithm: comparison}; empty where a refusal says of no way out.
    """

    architecture: Architecture
    towers: list[str] = field(default_factory=list)
    layers: int = 0
    share: float = 0.0
    refusal: str | None = None
    skipped: list[str] = field(default_factory=list)
    found: dict[str, Comparison] = field(default_factory=dict)

    @property
    def wrong(self) -> list[str]:
        """What differs from the reference."""
        return [f"{name}: {line}" for name, comparison in self.found.items() for line in comparison.wrong]


def examine(architecture: Architecture, algorithms: Mapping[str, Compare] = ALGORITHMS) -> Row:
    """Prune and score an architecture by some algorithms and the reference, without layers it is refused
    for.
    """
    row, calibration = Row(architecture), architecture.samples()
    try:
        every = [tower.name for tower in architecture.prunable().every_tower]
        row.towers = reached_towers(architecture.prunable(every), calibration.samples[0])
        check(architecture.prunable(row.towers), calibration)
    except UserError as error:
        row.refusal = str(error)
        if (advice := re.search(r"add skip_layers=\[(.*)\]", row.refusal)) is None:
            return row
        row.skipped = advice[1].split(",")
    model = architecture.prunable(row.towers, row.skipped)
    check(model, calibration)
    row.layers = len(model.layers)
    weights = {
        id(weight): weight.numel()
        for tower in model.towers
        for block in tower.blocks
        for weight in block.module.parameters()
    }
    row.share = sum(layer.size for layer in model.layers) / sum(weights.values())
    for name, compare in algorithms.items():
        row.found[name] = compare(lambda: architecture.prunable(row.towers, row.skipped), calibration)
    return row


def check(model: PrunableModel, calibration: CalibrationSet) -> None:
    """What every run that prunes asks before it scores.

    Raises:
        UserError: the samples don't reach a layer, or its weight is used without calling its module.
    """
    require_calls(model, calibration.batches(2), every_layer=True)
