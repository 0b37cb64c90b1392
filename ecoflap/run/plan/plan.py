"""The parts of a run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ecoflap.evaluate.protocol import Task
from ecoflap.finetune.job import Finetuner
from ecoflap.models.loading.loader import Selection
from ecoflap.prune.pruners import LayerPruner
from ecoflap.prune.whole_model import WholeModelPruner
from ecoflap.storage.cache.store import Store


@dataclass(frozen=True)
class Plan:
    """The parts of a run.

    Attributes:
        config: the resolved config as plain dicts and lists.
        folder: where the run writes.
        loader: makes the model.
        calibrator: draws the calibration set.
        scorer: measures the layers; null for ``score=none`` or where the allocation needs no scores.
        allocator: turns scores into counts.
        pruner: decides inside a layer, or over the whole model.
        finetuner: trains the pruned model; null where the steps don't.
        tasks: {name: task}, each measures the model.
        mean: the metric of a suite's tasks whose mean is reported; null for none.
        tracking: starts the tracker.
        store: stage cache.
        code: {part: hash of its source and of what that imports}, see ``source_hash``; taken when the run
            begins.
    """

    config: dict[str, Any]
    folder: Path
    loader: Any
    calibrator: Any
    scorer: Any
    allocator: Any
    pruner: LayerPruner | WholeModelPruner
    finetuner: Finetuner | None
    tasks: dict[str, Task]
    mean: str | None
    tracking: Any
    store: Store
    code: Mapping[str, str]

    @property
    def steps(self) -> list[str]:
        """The steps to run, in order."""
        return list(self.config["steps"])

    @property
    def reads_calibration(self) -> bool:
        """Whether the run calibrates, or trains on the split that it calibrates with."""
        trains = isinstance(self.pruner, WholeModelPruner) and self.pruner.trains and "prune" in self.steps
        return "calibrate" in self.steps or trains or getattr(self.finetuner, "data", None) == "training"

    @property
    def selection(self) -> Selection:
        """Which towers and layers are pruned."""
        return Selection(self.config["towers"], self.config["skip_layers"])

    @property
    def name(self) -> str:
        """A name that a person can read: model/pruner/score/sparsity/seed."""
        coarse = (
            self.scorer.name
            if self.scorer is not None
            else "none"
            if self.allocator.needs_scores
            else self.allocator.name
        )
        sparsity, seed = self.config["sparsity"], self.config["seed"]
        return f"{self.loader.name}/{self.pruner.name}/{coarse}/s{sparsity:g}/seed{seed}"
