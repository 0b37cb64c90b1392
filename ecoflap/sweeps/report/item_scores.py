"""The scores of a task's items in a run's folder, and the examples and the passage that were kept of them."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from ecoflap.storage.file_names import ITEMS, PREDICTIONS
from ecoflap.storage.files import read_json
from ecoflap.sweeps.report.runs import Run


@dataclass(frozen=True)
class ItemScores:
    """What a run keeps of a task's items.

    Attributes:
        metric: the metric that the scores are the items' shares of.
        exponential: whether the metric is exp of the scores' mean, not their mean in percent.
        dense: the dense model's score of each item; None if it is not known.
        pruned: the pruned model's.
        examples: ``question``, ``right``, ``dense``, ``pruned`` (answers) and ``picture`` (an address).
        passage: token, dense loss and pruned loss in nats.
    """

    metric: str
    exponential: bool
    dense: list[float] | None
    pruned: list[float]
    examples: list[dict[str, Any]]
    passage: list[tuple[str, float, float]]


def read_item_scores(run: Run, task: str) -> ItemScores | None:
    """What a run keeps of a task's items; None if it keeps nothing that this version reads."""
    values: Any = read_json(run.folder / PREDICTIONS / ITEMS.format(task=task, state=run.result.state))
    if not isinstance(values, dict) or values.keys() != {one.name for one in fields(ItemScores)}:
        return None
    return ItemScores(**values)
