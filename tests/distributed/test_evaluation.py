"""Predictions and stored values of several processes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ecoflap.distributed.processes import rank
from ecoflap.distributed.shared_store import SharedStore
from ecoflap.errors import UserError
from ecoflap.evaluate.prediction_log import PredictionLog

from .together import ChildError, together

BATCHES = [[0, 1], [2, 3], [4, 5], [6, 7], [8]]
SQUARES = [item * item for item in range(9)]


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_predictions_are_in_order_and_each_is_made_once(count: int, tmp_path: Path) -> None:
    """More processes than batches, too."""

    def work() -> tuple[list[Any], int]:
        computed: list[int] = []

        def compute(batch: list[int]) -> list[int]:
            computed.append(len(batch))
            return [item * item for item in batch]

        file = tmp_path / f"{rank()}.jsonl"
        return PredictionLog(file, "key").run(BATCHES, compute), sum(computed)

    found = together(count, work)
    assert [predictions for predictions, _ in found] == [SQUARES] * count
    assert sum(computed for _, computed in found) == 9
    assert [file.name for file in tmp_path.iterdir()] == ["0.jsonl"], "the first process alone writes"


@pytest.mark.parametrize("count", [1, 3])
def test_a_log_of_another_number_of_processes_is_resumed(count: int, tmp_path: Path) -> None:
    file = tmp_path / "log.jsonl"

    def work() -> list[Any]:
        return PredictionLog(file, "key").run(BATCHES, lambda batch: [item * item for item in batch])

    together(2, work)
    whole = file.read_text()
    file.write_text("".join(line + "\n" for line in whole.splitlines()[:2]))
    assert together(count, work) == [SQUARES] * count
    assert file.read_text() == whole


def test_an_error_in_one_batch_ends_all(tmp_path: Path) -> None:
    def work() -> list[Any]:
        def compute(batch: list[int]) -> list[int]:
            if 5 in batch:
                raise UserError("picture 5 is damaged")
            return batch

        return PredictionLog(tmp_path / "log.jsonl", "key").run(BATCHES, compute)

    with pytest.raises(ChildError, match="picture 5 is damaged"):
        together(2, work)
    assert PredictionLog(tmp_path / "log.jsonl", "key").read() == dict(enumerate(BATCHES[:2]))


def test_what_the_store_lacks_is_computed_together_and_read_afterwards(tmp_path: Path) -> None:
    def work() -> list[Any]:
        calls: list[int] = []

        def compute() -> list[int]:
            calls.append(1)
            return [rank()]

        store = SharedStore(tmp_path)
        first = store.get_or_compute("stage", {"a": 1}, compute)
        again = store.get_or_compute("stage", {"a": 1}, compute)
        return [first, again, len(calls)]

    assert together(3, work) == [[([0], False), ([0], True), 1]] * 3
    assert together(2, work) == [[([0], True), ([0], True), 0]] * 2
