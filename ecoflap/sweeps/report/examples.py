"""Examples on a page: pictures with the dense and the pruned answer, and a text coloured by its losses."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean
from typing import Any

from ecoflap.sweeps.report.cells import pruned, statistics
from ecoflap.sweeps.report.item_scores import ItemScores, read_item_scores
from ecoflap.sweeps.report.metrics import MetricTable
from ecoflap.sweeps.report.runs import Run

MOST = 24
"""Pictures in a section, over all of its tasks, so that a page stays small."""
FULL = 10.0
"""The loss in nats that has the full colour."""


def examples_of(table: MetricTable, tasks: int) -> dict[str, Any] | None:
    """The examples of one run of a task: of the best method at the highest sparsity that has some.

    Args:
        table: the task's metric.
        tasks: number of tasks that share the section.
    """
    for method, run in _from_the_sparsest(table):
        scores = read_item_scores(run, table.task)
        if scores is not None and (scores.examples or scores.passage):
            return {
                "method": method,
                "sparsity": run.sparsity,
                "run": run.name,
                "pictures": scores.examples[: MOST // tasks],
                "passage": _passage(scores),
            }
    return None


def _from_the_sparsest(table: MetricTable) -> list[tuple[str, Run]]:
    """The runs with their methods: highest sparsity first, then best mean, NaN last, then lowest seed."""
    sign = 1 if table.smaller_is_better else -1
    runs = [
        (
            -run.sparsity,
            math.isnan(mean := statistics(pruned(seeds))[0]),
            sign * mean,
            run.seed,
            method.label,
            run,
        )
        for method, run in zip(table.section.methods, table.section.runs, strict=True)
        if (seeds := table.cells.get(method, {}).get(run.sparsity)) is not None
    ]
    return [(label, run) for *_, label, run in sorted(runs, key=lambda one: one[:5])]


def _passage(scores: ItemScores) -> list[dict[str, Any]]:
    """The text once for each model: its mean loss, and its tokens with their losses and colours."""
    if not scores.passage:
        return []
    words, *losses = zip(*scores.passage, strict=True)
    return [
        _coloured(model, words, of_model) for model, of_model in zip(("dense", "pruned"), losses, strict=True)
    ]


def _coloured(model: str, words: Sequence[Any], losses: Sequence[Any]) -> dict[str, Any]:
    colours = [round(min(loss / FULL, 1), 2) for loss in losses]
    return {"model": model, "loss": fmean(losses), "tokens": list(zip(words, losses, colours, strict=True))}
