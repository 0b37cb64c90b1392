"""What the steps of a run have made so far."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ecoflap.allocate.allocation import Allocation
from ecoflap.data.calibration_set import CalibrationSet
from ecoflap.finetune.job import Training
from ecoflap.prune.report import PruneReport
from ecoflap.score.scores import Scores


@dataclass
class RunState:
    """The products of the steps; each is null or empty until its step has run.

    Attributes:
        fingerprint: hash of the dense weights.
        costs: step -> seconds and peak memory.
        metrics: dense, pruned and finetuned -> task -> metric -> value.
        tasks: task -> what its metrics depend on beside the model.
        calibration: the samples.
        training_split: so many samples of it, or all -> what was read.
        scores: importance of each layer.
        allocation: weights that each layer keeps.
        report: what was removed.
        training: how the pruned model was fine-tuned.
    """

    fingerprint: str
    costs: dict[str, dict[str, Any]] = field(default_factory=dict)
    metrics: dict[str, dict[str, dict[str, float]]] = field(default_factory=dict)
    tasks: dict[str, dict[str, Any]] = field(default_factory=dict)
    calibration: CalibrationSet | None = None
    training_split: dict[int | None, CalibrationSet] = field(default_factory=dict)
    scores: Scores | None = None
    allocation: Allocation | None = None
    report: PruneReport | None = None
    training: Training | None = None
