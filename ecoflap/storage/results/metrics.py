"""The metrics of a task by their names: counts, headlines, and standard errors beside them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

COUNTS = ("questions", "pictures", "images", "captions", "sentences", "rows")
"""Counts among a task's metrics; a task with nothing else, such as one that a server scores, has none."""

LM_EVAL, LMMS_EVAL = "lm-evaluation-harness", "lmms-eval"
"""What ``data.tasks`` calls the metrics of a harness."""

HIGHER_IS_BETTER = "higher_is_better"
"""Where ``data.tasks`` has the directions of a task's metrics."""

STANDARD_ERROR = "_stderr"
"""End of the name under which a task returns a metric's standard error."""

NORMAL = 1.96
"""Standard errors on each side of a 95 % interval."""


def is_count(metric: str, *values: Any) -> bool:
    """Whether a metric is a count, also that of a harness's task: by its name, or if its values are ints."""
    named = metric in COUNTS or metric.endswith("/samples")
    return named or (bool(values) and all(isinstance(value, int) for value in values))


def first_metric(values: Mapping[str, float]) -> str | None:
    """The name of a task's first metric; None if there are only counts."""
    return next((name for name in values if not is_count(name)), None)


def without_errors(values: Mapping[str, float]) -> tuple[dict[str, float], dict[str, float]]:
    """A task's metrics without their standard errors, and {metric: its standard error}, where it is known."""
    errors = {
        name.removesuffix(STANDARD_ERROR): value
        for name, value in values.items()
        if name.endswith(STANDARD_ERROR)
    }
    metrics = {name: value for name, value in values.items() if not name.endswith(STANDARD_ERROR)}
    return metrics, {name: value for name, value in errors.items() if math.isfinite(value)}
