"""What pruning gave: the model, its masks, and how they came about."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor, nn

from ecoflap.allocate.allocation import Allocation
from ecoflap.models.core.prunable import PrunableModel
from ecoflap.prune.report import PruneReport
from ecoflap.score.scores import Scores
from ecoflap.storage.results import Result


@dataclass(frozen=True, repr=False)
class PruneResult:
    """A pruned model.

    Attributes:
        prunable: the model with its towers, as ``ecoflap.evaluate`` and ``ecoflap.prune`` take it.
        scores: importance of each layer; null where nothing was scored.
        allocation: weights that each layer keeps.
        report: what was removed, block by block.
        record: what a run writes as ``result.json``.
    """

    prunable: PrunableModel
    scores: Scores | None
    allocation: Allocation
    report: PruneReport
    record: Result

    @property
    def model(self) -> nn.Module:
        """The pruned model: the one that was given."""
        return self.prunable.module

    @property
    def masks(self) -> Mapping[str, Tensor]:
        """{parameter of the model: bool tensor of its shape, True where a weight was kept}, on the CPU."""
        return self.report.masks

    @property
    def sparsity(self) -> float:
        """Zeros / prunable weights, as counted in the pruned model."""
        return float(self.record.sparsity["prunable"])

    def to_json(self) -> dict[str, Any]:
        """Everything but weights and masks as plain JSON values."""
        return {
            **self.record.to_json(),
            "scores": None if self.scores is None else self.scores.to_json(),
            "allocation": asdict(self.allocation),
        }

    def __repr__(self) -> str:
        """What was pruned, and how much of it."""
        share = self.record.sparsity
        return (
            f"PruneResult({self.prunable.name}: {share['prunable']:.4f} of the prunable weights are zero,"
            f" {share['model']:.4f} of all)"
        )
