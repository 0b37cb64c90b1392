"""Evaluate the model in memory on any task about pictures of EvolvingLMMs-Lab's lmms-eval."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from statistics import fmean
from typing import Any

from ecoflap.evaluate.harness_scores import (
    Scores,
    by_filter,
    counts,
    directions,
    errors,
    flatten,
    logged,
    measured,
    note,
    reported,
)
from ecoflap.evaluate.harness_tasks import alone, check_options, code_below, relevant
from ecoflap.evaluate.inputs import error_of_mean, interface_settings
from ecoflap.evaluate.lmms_eval_model import harness_model
from ecoflap.evaluate.lmms_eval_tasks import as_lmms_eval, fingerprint, members, read_tasks, task_manager
from ecoflap.evaluate.options import LmmsEvalOptions
from ecoflap.evaluate.prediction_log import IN_MEMORY, PredictionLog
from ecoflap.models.core.protocols import Describes, require
from ecoflap.models.core.prunable import PrunableModel
from ecoflap.storage.results.metrics import HIGHER_IS_BETTER, LMMS_EVAL

log = logging.getLogger(__name__)

SEED = 1234  # of examples before a question, as lmms-eval draws them


@dataclass(frozen=True)
class LmmsEval(LmmsEvalOptions):
    """Tasks or groups of lmms-eval, or of the user's YAML files."""

    def __post_init__(self) -> None:
        check_options(self, "lmms-eval, such as [pope,chartqa]")

    def check_data(self, group: str) -> None:
        """Refuse tasks that can't be read.

        Raises:
            UserError: if lmms-eval is not installed, or a task or its data are missing.
        """
        manager = task_manager(self.include_path)
        for name in self.harness_tasks:
            read_tasks(manager, name)

    def check_model(self, model: PrunableModel) -> None:
        """Refuse a model that writes no text about pictures.

        Raises:
            UserError: if the model writes no text about pictures.
        """
        require(model, Describes, f"task={self.name}")

    def load(self, model: PrunableModel) -> LmmsEvalEvaluation:
        """Find the tasks and read their data.

        Raises:
            UserError: if lmms-eval is not installed, a task or its data are missing, or the model writes no
                text about pictures.
        """
        self.check_model(model)
        manager = task_manager(self.include_path)
        tasks = {name: read_tasks(manager, name) for name in self.harness_tasks}
        own = code_below(self.include_path)
        inputs = (
            f"{fingerprint(tasks, self.limit)} {own} {interface_settings(model.interface, brief=False)!r}"
        )
        loss = model.loss_identity(None)  # of answers, by which some tasks choose
        every = {name: task for of_name in tasks.values() for name, task in members(of_name).items()}
        return LmmsEvalEvaluation(self, manager, f"{inputs} {loss!r}", directions(every))


@dataclass
class LmmsEvalEvaluation:
    """The tasks with their data; call it with a model.

    Attributes:
        task: its options.
        manager: lmms-eval's index of tasks.
        inputs: hash of all inputs, and what the model's interface and its loss add to them.
        higher_is_better: {task/metric: whether a higher value is better}, of those that tell.
    """

    task: LmmsEval
    manager: Any
    inputs: str
    higher_is_better: dict[str, bool]

    def identity(self) -> dict[str, Any]:
        """Everything that the metrics depend on beside the model, and their directions."""
        harness = {"metric": LMMS_EVAL, "version": version("lmms_eval"), "inputs": self.inputs}
        return {**harness, **relevant(self.task), HIGHER_IS_BETTER: self.higher_is_better}

    def __call__(self, model: PrunableModel, prediction_log: PredictionLog = IN_MEMORY) -> dict[str, float]:
        """Metrics by task/metric, on the harness's scales, and the number of examples by task/samples.

        Beside the log of a dense model, a metric that is the mean of scores also has its change against it,
        paired by example: ``task/metric_change``, with its standard error ``task/metric_change_error``.
        """
        model.module.eval()
        every, by_task = measured(self.task.harness_tasks, partial(self._measure, model), prediction_log)
        every |= changes(dense_scores(prediction_log.dense), by_task)
        note(prediction_log, every, by_task)
        return every | errors(by_task)

    def _measure(self, model: PrunableModel, name: str) -> dict[str, Any]:
        """Evaluate one task or group.

        Returns:
            ``metrics``, without standard errors and with the number of examples; ``scores`` of each example;
            and ``samples``, the model's answers.
        """
        from lmms_eval.evaluator import evaluate

        tasks = read_tasks(self.manager, name)
        asked = harness_model(model, self.task.batch_size)
        for member, task in members(tasks).items():
            asked.task_dict[member] = task.dataset
            if task.get_config("num_fewshot") is None:
                task.set_config(key="num_fewshot", value=0)
            task.set_fewshot_seed(seed=SEED)
        options = {"limit": self.task.limit, "bootstrap_iters": 0, "log_samples": True}
        with alone(), as_lmms_eval():
            # simple_evaluate would also seed the global generators, and patch ssl and filelock for good
            found = evaluate(asked, tasks, process_docs_parallel=1, **options)
        samples = {
            member: with_filters(found["samples"][member], list(task.instances[0].filtered_resps))
            for member, task in members(tasks).items()
        }
        values = flatten(found["results"])
        return {
            "metrics": values | counts(samples),
            "scores": {task: by_filter(of_it, reported(values, task)) for task, of_it in samples.items()},
            "samples": logged(samples, "doc_id", "filter", "target", "filtered_resps"),
        }


def with_filters(samples: Sequence[Mapping[str, Any]], filters: Sequence[str]) -> list[dict[str, Any]]:
    """The samples of a task with the name of their filter, as lm-eval has them.

    Args:
        samples: all of the first filter, then all of the next one.
        filters: the names of the task's filters.
    """
    each = len(samples) // len(filters)
    return [{**one, "filter": filters[place // each]} for place, one in enumerate(samples)]


def dense_scores(dense: PredictionLog | None) -> Scores:
    """The scores in the dense model's log; empty where there is none of the same weights and questions."""
    found = {} if dense is None else dense.read()
    if dense is not None and not found:
        log.info("%s: the dense model's answers are from another run, so changes aren't paired", dense.file)
    every = (measured for of_batch in found.values() for measured in of_batch)
    return {task: of_it for measured in every for task, of_it in measured["scores"].items()}


def changes(dense: Scores, pruned: Scores) -> dict[str, float]:
    """Mean changes of scores, paired by example, and their standard errors, by task/metric."""
    found = {}
    for task, metrics in pruned.items():
        for metric, values in metrics.items():
            before = dense.get(task, {}).get(metric, {})
            if before.keys() != values.keys():
                continue
            differences = [values[document] - before[document] for document in values]
            found[f"{task}/{metric}_change"] = fmean(differences)
            if len(differences) > 1:
                found[f"{task}/{metric}_change_error"] = error_of_mean(differences)
    return found
