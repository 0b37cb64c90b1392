"""The plan: all parts of a run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ecoflap.allocate.protocol import Allocator, coarse_stage
from ecoflap.blocks.footprint import Footprint
from ecoflap.console.tracking import Tracking
from ecoflap.data.protocol import Calibration
from ecoflap.evaluate.protocol import Task
from ecoflap.finetune.protocol import Finetuner
from ecoflap.models.core.towers import Selection
from ecoflap.models.loading.protocol import Loader
from ecoflap.prune.protocol import Pruner
from ecoflap.run.config import RunConfig
from ecoflap.score.protocol import Scorer
from ecoflap.storage.cache.store import Store


@dataclass(frozen=True)
class Plan:
    """The parts of a run.

    Attributes:
        config: the resolved config, with groups as plain dicts.
        record: the config as plain dicts and lists, for results and trackers.
        folder: the folder that the run writes to.
        loader: loads the model.
        calibrator: draws the calibration set.
        scorer: scores the layers; None for ``score=none``, or if the allocation takes no scores.
        allocator: turns scores into counts.
        pruner: prunes layers or the whole model.
        finetuner: trains the pruned model; None without the finetune step.
        tasks: {name: task}.
        mean: the metric of a suite's tasks whose mean is reported; None for no mean.
        tracking: starts the tracker.
        store: the stage cache.
        code: {part: hash of its source and of its imports} at the start of the run, see ``source_hash``.
        origin: the versions and the commit at the start of the run, see ``environment``.
        sources: the user's own code and the files at the start of the run, see ``sources_of``.
    """

    config: RunConfig
    record: dict[str, Any]
    folder: Path
    loader: Loader
    calibrator: Calibration
    scorer: Scorer | None
    allocator: Allocator
    pruner: Pruner
    finetuner: Finetuner | None
    tasks: dict[str, Task]
    mean: str | None
    tracking: Tracking
    store: Store
    code: Mapping[str, str]
    origin: dict[str, Any]
    sources: dict[str, Any]

    @property
    def steps(self) -> list[str]:
        """The steps to run, in order."""
        return self.config.steps

    @property
    def reads_calibration(self) -> bool:
        """Whether the run draws a calibration set, or trains on the training split behind it."""
        return "calibrate" in self.steps or self.pruner_trains or self.finetuner_trains

    @property
    def uses_calibration(self) -> bool:
        """Whether a step looks at the calibration set itself."""
        prunes = "prune" in self.steps and self.pruner.requires_calibration and not self.pruner_trains
        finetunes = self.finetuner is not None and not self.finetuner_trains
        return self.scoring is not None or self.allocates_from_data or prunes or finetunes

    @property
    def allocates_from_data(self) -> bool:
        """Whether the allocation runs the calibration set through the model."""
        return "allocate" in self.steps and not self.pruner.allocates and self.allocator.requires.calibration

    @property
    def scoring(self) -> Scorer | None:
        """The scorer, if its step runs."""
        return self.scorer if "score" in self.steps else None

    @property
    def allocating(self) -> Footprint | None:
        """What the allocator keeps in memory, if its step runs samples."""
        return self.allocator.footprint if "allocate" in self.steps and not self.pruner.allocates else None

    @property
    def pruner_trains(self) -> bool:
        """Whether the pruner trains on the training split behind the calibration set."""
        return self.pruner.allocates and self.pruner.trains and "prune" in self.steps

    @property
    def finetuner_trains(self) -> bool:
        """Whether the finetuner trains on the training split behind the calibration set."""
        return self.finetuner is not None and self.finetuner.data == "training"

    @property
    def selection(self) -> Selection:
        """Which towers and layers are pruned."""
        return Selection(self.config.towers, self.config.skip_layers)

    @property
    def coarse(self) -> str:
        """What decides the sparsities of layers: the scorer, an allocation without scores, or none."""
        return coarse_stage(self.allocator, self.scorer)

    @property
    def name(self) -> str:
        """A readable name of the run: model/pruner/coarse stage/sparsity/seed."""
        config = self.config
        return f"{self.loader.name}/{self.pruner.name}/{self.coarse}/s{config.sparsity:g}/seed{config.seed}"
