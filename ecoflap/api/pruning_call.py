"""One call of ``ecoflap.prune``: its steps, and the record that they make."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ecoflap.allocate.allocation import Allocation
from ecoflap.allocate.protocol import Context, checked_allocation
from ecoflap.api.calibration import calibrate
from ecoflap.api.method import Method
from ecoflap.api.result import PruneResult
from ecoflap.console.telemetry import measure
from ecoflap.data.calibration_set import CalibrationSet
from ecoflap.distributed.collectives import require_same
from ecoflap.models.core.prunable import PrunableModel
from ecoflap.prune import driver
from ecoflap.prune.inputs import require_capture
from ecoflap.prune.report import PruneReport
from ecoflap.prune.whole_model import prune_whole
from ecoflap.run.record import make_record
from ecoflap.run.show import show_block, warn_of_dense_blocks
from ecoflap.run.state import RunState
from ecoflap.score.protocol import checked_scores
from ecoflap.storage.results import environment
from ecoflap.storage.results.sources import sources_of


@dataclass(frozen=True)
class PruningCall:
    """A call with all that it needs but its data.

    Attributes:
        model: dense.
        method: the parts.
        sparsity: the target.
        seed: seed of all random draws.
        batch_size: samples per forward pass of the pruner.
        propagate: pruned, layer, compensated or dense.
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
        method, config = self.method, self._config()
        origin, sources, state = environment(), sources_of(config), RunState(self.model.fingerprint())
        require_same(lambda: state.fingerprint, "models (weights or settings)")
        warn_of_dense_blocks(self.model, self.sparsity)
        state.scores, state.allocation = method.scores, method.allocation
        if data is not None and method.requires_calibration:
            with measure(state.costs, "calibrate"):
                state.calibration = calibrate(self.model, data, seed=self.seed)
                require_same(state.calibration.fingerprint, "calibration samples")
                require_capture(
                    self.model, method.pruner, state.calibration, self.batch_size, self.propagate, self.tokens
                )
        if method.scorer is not None:
            assert state.calibration is not None
            with measure(state.costs, "score"):
                state.scores = checked_scores(method.scorer, self.model, state.calibration, self.seed)
        if method.allocator is not None and not method.pruner.allocates:
            with measure(state.costs, "allocate"):
                state.allocation = checked_allocation(
                    method.allocator,
                    self.model,
                    state.scores,
                    self.sparsity,
                    Context(method.pruner, state.calibration, self.batch_size, self.seed, self.tokens),
                )
        if state.allocation is not None and not method.pruner.allocates:
            state.allocation = method.pruner.fitted(state.allocation)
        with measure(state.costs, "prune"):
            allocation, report = self._prune(state.calibration, state.allocation)
        state.allocation, state.report = allocation, report
        record = make_record(self.model, state, config, method.pruner, method.coarse, origin, sources)
        return PruneResult(self.model, state.scores, allocation, report, record)

    def _prune(
        self, calibration: CalibrationSet | None, allocation: Allocation | None
    ) -> tuple[Allocation, PruneReport]:
        """Prune in place; returns how many weights each layer keeps, and what was removed."""
        pruner = self.method.pruner
        if pruner.allocates:
            return prune_whole(self.model, calibration, pruner, self.sparsity, show_block, self.seed)
        assert allocation is not None
        report = driver.prune(
            self.model,
            calibration,
            pruner,
            allocation,
            self.batch_size,
            on_block=show_block,
            propagate=self.propagate,
            tokens=self.tokens,
        )
        return allocation, report

    def _config(self) -> dict[str, Any]:
        """The call as a run's config."""
        selection = self.model.selection
        return {
            **self.method.to_config(),
            "sparsity": self.sparsity,
            "seed": self.seed,
            "towers": selection.towers,
            "skip_layers": list(selection.skip_layers),
            "batch_size": self.batch_size,
            "propagate": self.propagate,
            "tokens": self.tokens,
        }
