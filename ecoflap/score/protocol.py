"""The protocol of a scorer, which measures how important layers, or groups of layers, are.

A new scorer derives from ``Scorer``, whose defaults fit most.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import Any, ClassVar, Protocol

from ecoflap.blocks.footprint import Footprint
from ecoflap.data.calibration_set import CalibrationSet
from ecoflap.errors import NumericalError, UserError
from ecoflap.models.core.kept_weights import keeping_weights
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


def checked_scores(scorer: Scorer, model: PrunableModel, calibration: CalibrationSet, seed: int) -> Scores:
    """Let a scorer score, and refuse what is no score, or other weights than before.

    Raises:
        UserError: if it returns no scores, importance is negative, or it has changed a weight.
        NumericalError: if a score is not finite.
    """
    part = f"score={scorer.name}"
    with keeping_weights(model, scorer, part):
        scores: object = scorer(model, calibration, seed)
    if not isinstance(scores, Scores):
        raise UserError(f"{part} returned a {type(scores).__name__}; correct it: a scorer returns Scores")
    for name, value in scores.importance.items():
        if not math.isfinite(value):
            raise NumericalError(f"{part}: the score of {name} is {float(value)}")
        if value < 0 and scores.kind == IMPORTANCE:
            raise UserError(
                f"{part}: the score of {name} is {float(value):g}, and importance is not negative; correct"
                " it, or give its scores another kind and use an allocation for them"
            )
    return scores
