"""The protocol of tasks: a task reads its data once, and evaluates the dense and the pruned model on them."""

from __future__ import annotations

from typing import Any, Protocol

from ecoflap.evaluate.prediction_log import IN_MEMORY, PredictionLog
from ecoflap.models.core.prunable import PrunableModel


class Evaluation(Protocol):
    """A task with its data in memory.

    It may have ``sources``, the names of what it reads (see ``ecoflap.data.sources``); a calibration set with
    one of them is refused. It may have ``chance()``, the headline that a constant answer reaches, in percent.
    """

    def identity(self) -> dict[str, Any]:
        """Everything that the metrics depend on beside the model."""

    def __call__(self, model: PrunableModel, prediction_log: PredictionLog = IN_MEMORY) -> dict[str, float]:
        """The model's metrics; the first one is the headline.

        ``NAME_stderr`` is the standard error of the metric ``NAME``, for those that have one.
        """


class Task(Protocol):
    """Evaluates models.

    It may have ``metrics``, the names of all that it can return. Before any weight is read, a task may refuse
    data that are missing, damaged or too few, in ``check_data(group)``, and a model that can't do what it
    needs, in ``check_model(model)``, as far as the model's shapes, processor and interface tell. So may a
    calibration set.

    Attributes:
        name: the task's name in logs and result files.
    """

    name: str

    def load(self, model: PrunableModel) -> Evaluation:
        """Read the data.

        Raises:
            UserError: if data are missing, or the model can't do what the task needs.
        """
