"""The step that measures the model on its tasks: dense, pruned, fine-tuned."""

from __future__ import annotations

from functools import partial

from ecoflap.console.telemetry import measure
from ecoflap.errors import UserError
from ecoflap.evaluate.prediction_log import PredictionLog
from ecoflap.evaluate.protocol import Evaluation
from ecoflap.models.core.prunable import PrunableModel
from ecoflap.run.plan import Plan
from ecoflap.run.state import RunState
from ecoflap.run.steps.keys import computed_by, dense_metrics_key
from ecoflap.storage.file_names import PREDICTIONS


def evaluate_dense(
    plan: Plan, model: PrunableModel, evaluations: dict[str, Evaluation], state: RunState
) -> None:
    """Measure the dense model on each task, or take its figures from the store."""
    if not evaluations:
        return
    with measure(state.costs, "evaluate_dense") as cost:
        metrics: dict[str, dict[str, float]] = {}
        read: list[bool] = []
        for name, evaluation in evaluations.items():
            state.tasks[name] = evaluation.identity()
            prediction_log = _prediction_log(plan, name, "dense", state.fingerprint, evaluation)
            dense, cached = plan.store.get_or_compute(
                "dense_metrics",
                dense_metrics_key(plan, state, name),
                partial(evaluation, model, prediction_log),
            )
            metrics[name] = dense
            read.append(cached)
            with_mean({name: dense}, plan.mean)  # refused now, not after the other tasks
        cost["cached"] = all(read)
    state.metrics["dense"] = with_mean(metrics, plan.mean)


def evaluate(
    plan: Plan, model: PrunableModel, evaluations: dict[str, Evaluation], state: RunState, when: str
) -> None:
    """Measure the model as it is now on each task."""
    if not evaluations:
        return
    fingerprint = model.fingerprint()
    with measure(state.costs, "evaluate" if when == "pruned" else f"evaluate_{when}"):
        metrics = {
            name: evaluation(model, _prediction_log(plan, name, when, fingerprint, evaluation))
            for name, evaluation in evaluations.items()
        }
    state.metrics[when] = with_mean(metrics, plan.mean)


def with_mean(metrics: dict[str, dict[str, float]], metric: str | None) -> dict[str, dict[str, float]]:
    """The metrics of several tasks, led by the mean of one that all have, where it is asked for.

    Raises:
        UserError: a task has no such metric.
    """
    if metric is None:
        return metrics
    for task, values in metrics.items():
        if metric not in values:
            raise UserError(f"task.mean={metric}: {task} has no such metric; it has {', '.join(values)}")
    mean = sum(values[metric] for values in metrics.values()) / len(metrics)
    return {"mean": {metric: mean, "tasks": float(len(metrics))}, **metrics}


def _prediction_log(
    plan: Plan, task: str, which: str, fingerprint: str, evaluation: Evaluation
) -> PredictionLog:
    """Where the predictions of a task go, and what they depend on."""
    depends = {**computed_by(plan, f"task {task}"), "model": fingerprint, "task": evaluation.identity()}
    return PredictionLog(plan.folder / PREDICTIONS / f"{task}_{which}.jsonl", depends)
