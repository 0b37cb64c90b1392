"""The evaluation of the model on its tasks: dense, pruned and fine-tuned."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

from ecoflap.console.telemetry import measure
from ecoflap.distributed.processes import is_first
from ecoflap.errors import NumericalError, UserError
from ecoflap.evaluate.items import write_items
from ecoflap.evaluate.prediction_log import PredictionLog
from ecoflap.evaluate.protocol import Evaluation, checked_evaluation
from ecoflap.models.core.forward_modes import as_before
from ecoflap.models.core.prunable import PrunableModel
from ecoflap.run.plan import Plan
from ecoflap.run.state import RunState
from ecoflap.run.steps.keys import computed_by, dense_metrics_key
from ecoflap.storage.file_names import ITEMS, PREDICTIONS
from ecoflap.storage.results.metrics import HIGHER_IS_BETTER, STANDARD_ERROR, first_metric, without_errors

log = logging.getLogger(__name__)

NEAR = 2.0  # standard errors above chance
LONGEST = 4096  # characters of a task's identity in the record


def evaluate_dense(
    plan: Plan, model: PrunableModel, evaluations: dict[str, Evaluation], state: RunState
) -> None:
    """Evaluate the dense model on each task, or read its metrics from the store."""
    if not evaluations:
        return
    with measure(state.costs, "evaluate_dense") as cost:
        metrics: dict[str, dict[str, float]] = {}
        cost["cached"] = True
        for name, evaluation in evaluations.items():
            state.tasks[name] = without_contents(evaluation.identity())
            prediction_log = _prediction_log(plan, state, name, "dense", state.fingerprint, evaluation)
            key = dense_metrics_key(plan, state, name)
            compute = partial(_with_items, name, evaluation, model, prediction_log)
            found, cached = plan.store.get_or_compute("dense_metrics", key, compute)
            metrics[name], state.items[name] = found["metrics"], found["items"]
            cost["cached"] = cost["cached"] and cached
            if (remark := near_chance(model.name, name, evaluation, metrics[name])) is not None:
                log.warning("%s", remark)
            with_mean({name: metrics[name]}, plan.mean)  # refuse a missing metric before the next task
    _keep(metrics, plan, state, "dense")


def evaluate(
    plan: Plan, model: PrunableModel, evaluations: dict[str, Evaluation], state: RunState, when: str
) -> None:
    """Evaluate the model in its present state on each task.

    Raises:
        NumericalError: if an output is NaN or infinite.
    """
    if not evaluations:
        return
    fingerprint = model.fingerprint()
    with measure(state.costs, "evaluate" if when == "pruned" else f"evaluate_{when}"):
        metrics = {}
        for name, evaluation in evaluations.items():
            prediction_log = _prediction_log(plan, state, name, when, fingerprint, evaluation)
            with _blaming_the_training(name) if when == "finetuned" else nullcontext():
                metrics[name] = _measured(name, evaluation, model, prediction_log)
            if prediction_log.items is not None and is_first():
                file = plan.folder / PREDICTIONS / ITEMS.format(task=name, state=when)
                write_items(file, state.items.get(name), prediction_log.items)
    _keep(metrics, plan, state, when)


def without_contents(identity: Mapping[str, Any]) -> dict[str, Any]:
    """A task's identity for the record, which is published: a hash in place of the longest values.

    Args:
        identity: of the task; up to ``LONGEST`` characters, and what tells directions of metrics, stay.
    """
    texts = {key: json.dumps(value) for key, value in identity.items() if key != HIGHER_IS_BETTER}
    shown, excess = dict(identity), sum(map(len, texts.values())) - LONGEST
    for key in sorted(texts, key=lambda key: len(texts[key]), reverse=True):
        if excess <= 0:
            break
        shown[key] = hashlib.blake2b(texts[key].encode(), digest_size=16).hexdigest()
        excess -= len(texts[key])
    return shown


@contextmanager
def _blaming_the_training(task: str) -> Iterator[None]:
    """Say why outputs of a fine-tuned model are not finite: the pruned one has passed the same evaluation.

    Raises:
        NumericalError: if they are not.
    """
    try:
        yield
    except NumericalError as error:
        raise NumericalError(
            f"outputs of the fine-tuned model on {task} are NaN or infinite, and those of the pruned one were"
            " not: the training has diverged; use a smaller finetune.learning_rate"
        ) from error


def _keep(metrics: dict[str, dict[str, float]], plan: Plan, state: RunState, when: str) -> None:
    """Put the metrics into the run state, and their standard errors beside them."""
    apart = {task: without_errors(values) for task, values in metrics.items()}
    state.metrics[when] = with_mean({task: values for task, (values, _) in apart.items()}, plan.mean)
    state.standard_errors[when] = {task: errors for task, (_, errors) in apart.items() if errors}


def near_chance(model: str, task: str, evaluation: Evaluation, metrics: Mapping[str, float]) -> str | None:
    """A remark on a dense model that is about as right as a constant answer; None for one that is better.

    Args:
        model: the name of the model.
        task: the name of the task.
        evaluation: the task with its data.
        metrics: of the dense model.
    """
    metric = first_metric(metrics)
    if metric is None or not hasattr(evaluation, "chance"):
        return None
    chance, found = float(evaluation.chance()), metrics[metric]
    error = metrics.get(f"{metric}{STANDARD_ERROR}", 0.0)
    if not found <= chance + NEAR * error:
        return None
    return (
        f"dense, {model} reaches {metric} {found:.1f} on {task}, where the commonest answer alone reaches"
        f" {chance:.1f}: it can't do this task as it is asked, so that pruning has nothing to lose; check the"
        " prompt (model.prompt), and that the weights are those of this task"
    )


def with_mean(metrics: dict[str, dict[str, float]], metric: str | None) -> dict[str, dict[str, float]]:
    """Prepend the mean of a metric over all tasks to their metrics.

    Args:
        metrics: {task: {metric: value}}.
        metric: the metric to average; None for no mean.

    Raises:
        UserError: if a task lacks the metric.
    """
    if metric is None:
        return metrics
    for task, values in metrics.items():
        if metric not in values:
            raise UserError(f"task.mean={metric}: {task} has no such metric; it has {', '.join(values)}")
    mean = sum(values[metric] for values in metrics.values()) / len(metrics)
    return {"mean": {metric: mean, "tasks": float(len(metrics))}, **metrics}


def _measured(
    task: str, evaluation: Evaluation, model: PrunableModel, prediction_log: PredictionLog
) -> dict[str, float]:
    """The metrics; the evaluation leaves nothing in the model that a later step would compute with."""
    with as_before(model.module):
        return checked_evaluation(task, evaluation, model, prediction_log)


def _with_items(
    task: str, evaluation: Evaluation, model: PrunableModel, prediction_log: PredictionLog
) -> dict[str, Any]:
    """The metrics, and what the evaluation notes of its items."""
    metrics = _measured(task, evaluation, model, prediction_log)
    noted = prediction_log.items
    return {"metrics": metrics, "items": None if noted is None else noted.to_json()}


def _prediction_log(
    plan: Plan, state: RunState, task: str, which: str, fingerprint: str, evaluation: Evaluation
) -> PredictionLog:
    """The prediction log of a task, with everything that its predictions depend on."""
    depends = {**computed_by(plan, f"task {task}"), "model": fingerprint, "task": evaluation.identity()}
    folder = plan.folder / PREDICTIONS
    dense = PredictionLog(folder / f"{task}_dense.jsonl", {**depends, "model": state.fingerprint})
    if which == "dense":
        return dense
    return PredictionLog(folder / f"{task}_{which}.jsonl", depends, dense)
