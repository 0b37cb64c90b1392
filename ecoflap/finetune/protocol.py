"""The protocol of a finetuner."""

from __future__ import annotations

from abc import abstractmethod
from typing import Protocol

from ecoflap.finetune.footprint import TrainingFootprint
from ecoflap.finetune.job import Job, Training
from ecoflap.models.core.prunable import PrunableModel


class Finetuner(Protocol):
    """Trains a pruned model in place, with removed weights fixed at zero.

    A new one derives from this class.

    Attributes:
        name: shown in logs and written to result files.
        data: what it trains on: ``training`` (the training split of the calibration data) or ``calibration``.
        samples: the number of samples; None for all.
    """

    name: str
    data: str = "calibration"
    samples: int | None = None

    def check_model(self, model: PrunableModel) -> None:
        """Refuse a model that can't be trained, before anything is pruned; the model may lack weights.

        Raises:
            UserError: if a layer that is to be pruned can't be trained.
        """
        return  # a body of its own: type checkers take a method of a protocol without one for abstract

    def footprint(self, model: PrunableModel, sparsity: float) -> TrainingFootprint | None:
        """What the training of a model keeps in memory; None if that is not known, so that no plan shows it.

        Args:
            model: pruned or not; it may lack weights.
            sparsity: of its layers.
        """
        return None

    def passes(self, samples: int) -> float | None:
        """How many samples a training runs forward and backward; None if that is not known.

        Args:
            samples: how many samples there are to train on.
        """
        return None

    @abstractmethod
    def finetune(self, job: Job) -> Training:
        """Train in place; the run refuses weights that become NaN or infinite.

        Raises:
            UserError: if the options don't fit the model or the data.
            NumericalError: if a loss is NaN or infinite.
        """
