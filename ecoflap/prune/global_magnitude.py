"""Global magnitude pruning, a baseline of the paper: all weights compete by absolute value.

The authors' code compares signed values.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from typing_extensions import override

from ecoflap.allocate.allocation import Allocation
from ecoflap.data.calibration_set import CalibrationSet
from ecoflap.errors import require_choices
from ecoflap.models.core.prunable import PrunableModel
from ecoflap.prune.global_masks import apply_masks, choose_masks, report_masks
from ecoflap.prune.options import GlobalMagnitudeOptions
from ecoflap.prune.protocol import ModelPruner
from ecoflap.prune.report import PruneReport


@dataclass(frozen=True)
class GlobalMagnitude(GlobalMagnitudeOptions, ModelPruner):
    """Remove the smallest weights by absolute value."""

    requires_calibration: ClassVar[bool] = False

    def __post_init__(self) -> None:
        require_choices("pruner", self)

    @override
    def prune(
        self, model: PrunableModel, calibration: CalibrationSet | None, sparsity: float, seed: int = 0
    ) -> tuple[Allocation, PruneReport]:
        masks = choose_masks(model, self.scope, sparsity, lambda layer: layer.weight.detach().float().abs())
        apply_masks(model, masks)
        return report_masks(model, masks, sparsity, self.scope)
