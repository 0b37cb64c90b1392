"""What a task is: it reads its data once and measures the dense and the pruned model on them."""

from __future__ import annotations

from typing import Any, Protocol

from ecoflap.evaluate.prediction_log import IN_MEMORY, PredictionLog
from ecoflap.models.core.prunable import PrunableModel


class Evaluation(Protocol):
    """A task with its data in memory.

    It may have ``sources``: names of what it reads, see ``ecoflap.data.sources``; a calibration set with one
    of them is refused.
    """

    def identity(self) -> dict[str, Any]:
        """Everything that the numbers depend on beside the model."""

    def __call__(self, model: PrunableModel, prediction_log: PredictionLog = IN_MEMORY) -> dict[str, float]:
        """The model's metrics; the first one is the headline."""


class Task(Protocol):
    """Measures a model.

    It may have ``metrics``, the names of all that it can give. Before any weight is read, a task and a
    calibration set may refuse: in ``check_data(group)``, data that are missing, damaged or too few; in
    ``check_model(model)``, a model that can't do what is needed, as far as its shapes, its tokenizer or
    processor and its interface tell.
    """

    name: str

    def load(self, model: PrunableModel) -> Evaluation:
        """Read the data.

        Raises:
            UserError: they are not there, or the model can't do what the task needs.
        """
