"""The result of pruning: the model, its masks, and the record of the method."""

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
        prunable: the pruned model with its towers, for ``ecoflap.evaluate`` and ``ecoflap.prune``.
        scores: the scores of the layers; None if nothing was scored.
        allocation: how many weights each layer keeps.
        report: what was removed, block by block.
        record: the contents of a run's ``result.json``.
    """

    prunable: PrunableModel
    scores: Scores | None
    allocation: Allocation
    report: PruneReport
    record: Result

    @property
    def model(self) -> nn.Module:
        """The pruned model, the same object as the given one."""
        return self.prunable.module

    @property
    def masks(self) -> Mapping[str, Tensor]:
        """{parameter of the model: bool tensor of its shape on the CPU, True where kept}."""
        return self.report.masks

    @property
    def sparsity(self) -> float:
        """The share of zeros among the prunable weights, as counted in the pruned model.

        Of whole experts, which leave no zeros, the share of the prunable weights that they held.
        """
        if self.record.is_structured:
            return self.allocation.sparsity
        return float(self.record.sparsity["prunable"])

    def to_json(self) -> dict[str, Any]:
        """Everything but weights and masks as plain JSON values."""
        return {
            **self.record.to_json(),
            "scores": None if self.scores is None else self.scores.to_json(),
            "allocation": asdict(self.allocation),
        }

    def __repr__(self) -> str:
        """The name of the model and its sparsity."""
        if self.record.is_structured:
            gone = f"{self.sparsity:.4f} of the prunable weights are gone with whole experts"
        else:
            share = self.record.sparsity
            gone = f"{self.sparsity:.4f} of the prunable weights are zero, {share['model']:.4f} of all"
        return f"PruneResult({self.prunable.name}: {gone})"
