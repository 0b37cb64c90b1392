"""The steps of one pruning call, and the record that they make."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

from ecoflap.allocate.allocation import Allocation
from ecoflap.allocate.protocol import Context
from ecoflap.api.calibration import calibrate
from ecoflap.api.method import Method
from ecoflap.api.result import PruneResult
from ecoflap.console.telemetry import measure
from ecoflap.data.calibration_set import CalibrationSet
from ecoflap.models.core.prunable import PrunableModel
from ecoflap.prune import driver
from ecoflap.prune.inputs import require_capture
from ecoflap.prune.report import BlockReport, PruneReport
from ecoflap.run.outcome import (
    count_layers,
    describe_allocation,
    describe_calibration,
    describe_experts,
    describe_model,
)
from ecoflap.score.scores import Scores
from ecoflap.storage.results import Result, environment, sparsity_section

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Work:
    """The steps of one call.

    Attributes:
        model: dense.
        method: the parts.
        sparsity: the target.
        seed: seed of all random draws.
        batch_size: samples per forward pass of the pruner.
        propagate: pruned, layer or dense.
        tokens: which tokens count in statistics.
    """

    model: PrunableModel
    method: Method
    sparsity: float
    seed: int
    batch_size: int
    propagate: str
    tokens: str

    def run(self, data: Any) -> PruneResult:
        """Calibrate, score and allocate as needed, then prune.

        Args:
            data: anything that ``ecoflap.calibrate`` takes; None if the method uses no data.
        """
        costs: dict[str, dict[str, Any]] = {}
        fingerprint = self.model.fingerprint()
        calibration = None
        if data is not None and self.method.requires_calibration:
            with measure(costs, "calibrate"):
                calibration = calibrate(self.model, data, seed=self.seed)
                require_capture(
                    self.model, self.method.pruner, calibration, self.batch_size, self.propagate, self.tokens
                )
        scores = self._score(costs, calibration)
        allocation = self.method.allocation
        if self.method.allocator is not None and not self.method.pruner.allocates:
            with measure(costs, "allocate"):
                allocation = self.method.allocator(
                    self.model, scores, self.sparsity, self._context(calibration)
                )
        if allocation is not None and not self.method.pruner.allocates:
            allocation = self.method.pruner.fitted(allocation)
        with measure(costs, "prune"):
            allocation, report = self._prune(calibration, allocation)
        record = self._record(costs, fingerprint, calibration, scores, allocation, report)
        return PruneResult(self.model, scores, allocation, report, record)

    def _score(self, costs: dict[str, dict[str, Any]], calibration: CalibrationSet | None) -> Scores | None:
        """The scores of an earlier step, or of the scorer; None if there is neither."""
        if self.method.scorer is None:
            return self.method.scores
        assert calibration is not None
        with measure(costs, "score"):
            return self.method.scorer(self.model, calibration, self.seed)

    def _context(self, calibration: CalibrationSet | None) -> Context | None:
        """The run that the allocator allocates for; None beside a pruner that allocates by itself."""
        if self.method.pruner.allocates:
            return None
        return Context(self.method.pruner, calibration, self.batch_size, self.seed, self.tokens)

    def _prune(
        self, calibration: CalibrationSet | None, allocation: Allocation | None
    ) -> tuple[Allocation, PruneReport]:
        """Prune in place; returns how many weights each layer keeps, and what was removed."""
        pruner = self.method.pruner
        if pruner.allocates:
            return pruner.prune(self.model, calibration, self.sparsity, log_block, self.seed)
        assert allocation is not None
        report = driver.prune(
            self.model,
            calibration,
            pruner,
            allocation,
            self.batch_size,
            on_block=log_block,
            propagate=self.propagate,
            tokens=self.tokens,
        )
        return allocation, report

    def _record(
        self,
        costs: dict[str, dict[str, Any]],
        fingerprint: str,
        calibration: CalibrationSet | None,
        scores: Scores | None,
        allocation: Allocation,
        report: PruneReport,
    ) -> Result:
        """The contents of a run's ``result.json``; the realised sparsity is counted from the weights."""
        model = self.model
        counts = count_layers(model, report)
        surroundings = environment()
        data = {} if calibration is None else {"calibration": describe_calibration(calibration)}
        return Result(
            config={
                **self.method.to_config(),
                "sparsity": self.sparsity,
                "seed": self.seed,
                "towers": model.selection.towers,
                "skip_layers": list(model.selection.skip_layers),
                "batch_size": self.batch_size,
                "propagate": self.propagate,
                "tokens": self.tokens,
            },
            versions=surroundings["versions"],
            git=surroundings["git"],
            model=describe_model(model, fingerprint),
            data=data | describe_experts(report),
            metrics={},
            sparsity=sparsity_section(
                counts,
                allocation.target,
                model.parameter_count(),
                allocation.total,
                "pruner" if self.method.pruner.allocates else "allocation",
                self.method.coarse,
            ),
            steps=costs,
            scores=None if scores is None else scores.to_json(),
            allocation=describe_allocation(allocation),
        )


def log_block(block: BlockReport) -> None:
    """Log a line about a pruned block."""
    error = "" if block.error is None else f", error {block.error:.3f}"
    log.info("%s: sparsity %.3f%s, %.2f s", block.block, block.sparsity, error, block.seconds)
