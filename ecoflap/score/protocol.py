"""The protocol of a scorer, which measures how important layers, or groups of layers, are.

A new scorer derives from ``Scorer``, whose defaults fit most.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar, Protocol

from ecoflap.blocks.footprint import Footprint
from ecoflap.data.calibration_set import CalibrationSet
from ecoflap.models.core.prunable import PrunableModel
from ecoflap.score.scores import IMPORTANCE, LAYER, Scores


class Scorer(Protocol):
    """Measures a model on calibration samples.

    Attributes:
        name: shown in logs and written to result files.
        samples: how many samples of the calibration set are used, from the first.
        batch_size: samples that share a forward pass.
        kind: the meaning of its scores, see ``Scores``; an allocator may require another kind.
        granularity: what gets one score: layer, block or tower.
    """

    name: str
    samples: int
    batch_size: int
    kind: ClassVar[str] = IMPORTANCE
    granularity: ClassVar[str] = LAYER

    @property
    def footprint(self) -> Footprint:
        """What it keeps in memory; by default, a forward and a backward pass."""
        return Footprint("backward")

    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """Everything besides model, data and seed that the scores depend on."""

    @abstractmethod
    def __call__(self, model: PrunableModel, calibration: CalibrationSet, seed: int) -> Scores:
        """Score the layers of the model's towers.

        Args:
            model: dense; its weights are unchanged afterwards, bit for bit.
            calibration: the samples.
            seed: seed of all random draws.

        Raises:
            UserError: if it can't score the model.
            NumericalError: if a loss or a score is not finite.
        """
