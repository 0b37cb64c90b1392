"""The run state: the products of the steps so far."""

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
    """The products of the steps; each is None or empty until its step has run.

    Attributes:
        fingerprint: hash of the dense weights.
        costs: {step: seconds and peak memory}.
        metrics: {dense, pruned or finetuned: {task: {metric: value}}}.
        items: {task: the scores and answers of the dense model's items, if the task notes them}.
        standard_errors: {dense, pruned or finetuned: {task: {metric: its standard error}}}, where known.
        tasks: {task: what its metrics depend on beside the model}.
        calibration: the samples.
        training_split: {number of samples, None for all: the samples of the training split}.
        searched: the training split, if the pruner trained on it.
        scores: the scores of the layers.
        allocation: how many weights each layer keeps.
        report: what was removed.
        training: how the pruned model was fine-tuned.
    """

    fingerprint: str
    costs: dict[str, dict[str, Any]] = field(default_factory=dict)
    metrics: dict[str, dict[str, dict[str, float]]] = field(default_factory=dict)
    items: dict[str, dict[str, Any] | None] = field(default_factory=dict)
    standard_errors: dict[str, dict[str, dict[str, float]]] = field(default_factory=dict)
    tasks: dict[str, dict[str, Any]] = field(default_factory=dict)
    calibration: CalibrationSet | None = None
    training_split: dict[int | None, CalibrationSet] = field(default_factory=dict)
    searched: CalibrationSet | None = None
    scores: Scores | None = None
    allocation: Allocation | None = None
    report: PruneReport | None = None
    training: Training | None = None
