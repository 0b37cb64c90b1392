"""The protocol of tasks: a task reads its data once, and evaluates the dense and the pruned model on them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from ecoflap.errors import UserError
from ecoflap.evaluate.prediction_log import IN_MEMORY, PredictionLog
from ecoflap.models.core.kept_weights import keeping_weights
from ecoflap.models.core.protocols import Describes, require
from ecoflap.models.core.prunable import PrunableModel
from ecoflap.models.core.text_length import require_length
from ecoflap.storage.files import as_json


class Evaluation(Protocol):
    """A task with its data in memory.

    It may have ``sources``, the names of what it reads (see ``ecoflap.data.sources``); a calibration set that
    shares one is refused. It may have ``chance()``, the headline metric of a constant answer, in percent.
    """

    def identity(self) -> dict[str, Any]:
        """Everything besides the model that the metrics depend on, as plain JSON values.

        It is published with a pruned model, in ``result.json``: hash the data, under the key ``inputs``.
        """

    def __call__(self, model: PrunableModel, prediction_log: PredictionLog = IN_MEMORY) -> dict[str, float]:
        """The model's metrics; the first one is the headline.

        ``NAME_stderr`` is the standard error of the metric ``NAME``, for those that have one. An int is shown
        as a count.
        """


class Task(Protocol):
    """Evaluates models.

    It may have ``metrics``, the names of all that it can return. Before any weight is read, it may refuse
    missing, damaged or insufficient data in ``check_data(group)``, and a model that can't do what it needs,
    judged by its shapes, processor and interface, in ``check_model(model)``.

    Attributes:
        name: the task's name in logs and result files.
    """

    name: str

    def load(self, model: PrunableModel) -> Evaluation:
        """Read the data.

        Raises:
            UserError: if data are missing, or the model can't do what the task needs.
        """


def checked_evaluation(
    task: str, evaluation: Evaluation, model: PrunableModel, *prediction_log: PredictionLog
) -> dict[str, float]:
    """Evaluate a model, and refuse what is no metric, and an evaluation that changes weights.

    Args:
        task: the name of the task, for the message.
        evaluation: the task with its data.
        model: the model.
        prediction_log: takes the predictions, if there is one.

    Raises:
        UserError: if the evaluation returns no dict of numbers, or has changed a weight.
    """
    with keeping_weights(model, evaluation, f"task={task}"):
        metrics: object = evaluation(model, *prediction_log)
    return checked_metrics(task, metrics)


def checked_metrics(task: str, metrics: object) -> dict[str, float]:
    """What an evaluation returned, with plain numbers in place of those of NumPy and PyTorch.

    Args:
        task: the name of the task, for the message.
        metrics: what it returned.

    Raises:
        UserError: if it is not a dict of numbers.
    """
    if not isinstance(metrics, Mapping):
        raise UserError(
            f"task={task} returned a {type(metrics).__name__}; correct it: an evaluation returns a dict with"
            " a number for each metric"
        )
    found: dict[str, float] = as_json(metrics)
    for name, value in found.items():
        if not isinstance(value, int | float):
            raise UserError(
                f"task={task} returned {value!r} as the metric {name}; correct it: a metric is a number"
            )
    return found


class WritesText:
    """The check of a task for models that write about pictures."""

    name: str
    max_new_tokens: int

    def check_model(self, model: PrunableModel) -> None:
        """Refuse a model that writes no text about pictures, or none of the requested length.

        Raises:
            UserError: if the model can't write so.
        """
        require(model, Describes, f"task={self.name}")
        require_length(model, self.max_new_tokens, f"task.max_new_tokens={self.max_new_tokens}")
