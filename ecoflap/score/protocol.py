"""What a scorer is: it measures how much layers, or groups of them, matter.

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
        kind: what its numbers are, see ``Scores``; an allocator may want another kind.
        granularity: what gets one number: layer, block or tower.
    """

    name: str
    samples: int
    batch_size: int
    kind: ClassVar[str] = IMPORTANCE
    granularity: ClassVar[str] = LAYER

    @property
    def footprint(self) -> Footprint:
        """What it keeps in memory: a forward and a backward pass, unless it says otherwise."""
        return Footprint("backward")

    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """Everything that the numbers depend on beside model, data and seed."""

    @abstractmethod
    def __call__(self, model: PrunableModel, calibration: CalibrationSet, seed: int) -> Scores:
        """Measure the layers of the model's towers.

        Args:
            model: dense; its weights are the same afterwards, bit for bit.
            calibration: the samples.
            seed: of every random draw.

        Raises:
            NumericalError: a loss or a score is not finite.
        """
