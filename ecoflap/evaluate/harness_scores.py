"""What the harnesses report: metrics, the scores of their examples, and what the prediction log stores."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from math import isclose
from statistics import fmean
from typing import Any

from ecoflap.evaluate.inputs import error_of_mean
from ecoflap.evaluate.items import Items
from ecoflap.evaluate.prediction_log import PredictionLog
from ecoflap.storage.results.metrics import STANDARD_ERROR, first_metric

Scores = dict[str, dict[str, dict[str, float]]]
"""{task: {metric: {document: score}}}."""


def measured(
    names: Sequence[str], measure: Callable[[str], dict[str, Any]], prediction_log: PredictionLog
) -> tuple[dict[str, float], Scores]:
    """Measure tasks one after the other: their metrics by task/metric, and the scores behind them.

    Args:
        names: the tasks or groups.
        measure: returns ``metrics`` and ``scores`` of one of them, and ``samples``, the model's answers.
        prediction_log: stores what it returns.

    Returns:
        The metrics of each name in turn, those of a group before those of its tasks.
    """
    found = prediction_log.run([[name] for name in names], lambda batch: list(map(measure, batch)))
    metrics: dict[str, float] = {}
    for name, one in zip(names, found, strict=True):
        metrics |= {key: value for key, value in one["metrics"].items() if key.startswith(f"{name}/")}
        metrics |= one["metrics"]
    return metrics, {task: of_it for one in found for task, of_it in one["scores"].items()}


def flatten(results: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """Flatten a harness's results.

    Args:
        results: for each task its values by ``metric,filter``.

    Returns:
        Values by ``task/metric``, with the filter's name if there is one, and without standard errors.
    """
    flat = {}
    for task, metrics in results.items():
        for key, value in metrics.items():
            metric, _, rule = key.partition(",")
            if rule and isinstance(value, int | float) and "_stderr" not in metric:
                flat[f"{task}/{metric}" if rule == "none" else f"{task}/{metric},{rule}"] = float(value)
    return flat


def reported(values: Mapping[str, float], task: str) -> dict[str, float]:
    """{metric: value} of one task, among values by task/metric."""
    return {
        name.removeprefix(f"{task}/"): value for name, value in values.items() if name.startswith(f"{task}/")
    }


def scores(samples: Sequence[Mapping[str, Any]], metrics: Mapping[str, float]) -> dict[str, dict[str, float]]:
    """{metric: {document: score}} of the metrics that are the mean of a score per example.

    Others have such scores too: each of POPE's metrics, also F1, says of each example whether it is right.

    Args:
        samples: of a harness; a metric's value is a number, or a dict with ``score``.
        metrics: the value of each metric.
    """
    found: dict[str, dict[str, float]] = {}
    for metric, mean in metrics.items():
        each = {str(sample["doc_id"]): _score(sample.get(metric)) for sample in samples}
        known = {document: value for document, value in each.items() if value is not None}
        if known and len(known) == len(samples) and isclose(fmean(known.values()), mean, abs_tol=1e-9):
            found[metric] = known
    return found


def by_filter(
    samples: Sequence[Mapping[str, Any]], metrics: Mapping[str, float]
) -> dict[str, dict[str, float]]:
    """{metric: {document: score}}, see ``scores``; a metric after a comma names the filter of its samples."""
    found: dict[str, dict[str, float]] = {}
    for name, value in metrics.items():
        metric, _, rule = name.partition(",")
        filtered = [one for one in samples if one["filter"] == (rule or "none")]
        if metric in (each := scores(filtered, {metric: value})):
            found[name] = each[metric]
    return found


def counts(samples: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, float]:
    """The number of examples by task/samples; each filter of a task has all of them among its samples."""
    documents = {task: {sample["doc_id"] for sample in of_it} for task, of_it in samples.items()}
    return {f"{task}/samples": float(len(ids)) for task, ids in documents.items()}


def _score(value: Any) -> float | None:
    inside = value.get("score") if isinstance(value, Mapping) else value
    return float(inside) if isinstance(inside, int | float) else None


def directions(tasks: Mapping[str, Any]) -> dict[str, bool]:
    """{task/metric: whether a higher value is better}, of a harness's tasks, for the metrics that tell."""
    return {
        f"{name}/{metric}": higher
        for name, task in tasks.items()
        for metric, higher in (task.higher_is_better() or {}).items()
        if isinstance(higher, bool)
    }


def errors(found: Scores) -> dict[str, float]:
    """Standard errors by task/metric, under the names that ``without_errors`` knows."""
    return {
        f"{task}/{metric}{STANDARD_ERROR}": error_of_mean(list(values.values()))
        for task, metrics in found.items()
        for metric, values in metrics.items()
    }


def note(prediction_log: PredictionLog, metrics: Mapping[str, float], found: Scores) -> None:
    """Note the items of the first metric, unless it is no mean over them, such as the mean of several tasks.

    Args:
        prediction_log: of the model.
        metrics: by task/metric, on the harness's scale, where 1 is the most that an accuracy can be.
        found: the scores of their examples.
    """
    name = first_metric(metrics) or ""
    task, _, metric = name.partition("/")
    if (values := found.get(task, {}).get(metric)) is not None:
        each = [value / 100 for value in values.values()]  # a mean of items is taken for percent
        prediction_log.note(Items(name, each))


def logged(samples: Mapping[str, Sequence[Mapping[str, Any]]], *fields: str) -> dict[str, Any]:
    """The fields of each task's examples that the prediction log stores, as plain JSON values."""
    values = {
        task: [{name: one.get(name) for name in fields} for one in of_it] for task, of_it in samples.items()
    }
    plain: dict[str, Any] = json.loads(json.dumps(values, default=str))
    return plain
