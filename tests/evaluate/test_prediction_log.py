"""Predictions survive an interruption, and only those of the same model and task."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from ecoflap.errors import UserError
from ecoflap.evaluate.prediction_log import IN_MEMORY, PredictionLog

BATCHES = [[1, 2], [3, 4], [5]]


class Counting:
    def __init__(self, stop_at: int | None = None) -> None:
        self.calls, self.stop_at = 0, stop_at

    def __call__(self, batch: list[int]) -> list[int]:
        if self.calls == self.stop_at:
            raise KeyboardInterrupt
        self.calls += 1
        return [10 * item for item in batch]


def interrupted(file: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        PredictionLog(file, {"model": 1}).run(BATCHES, Counting(stop_at=2))


def test_goes_on_where_it_stopped(tmp_path: Path) -> None:
    file = tmp_path / "predictions" / "task.jsonl"
    interrupted(file)
    rest = Counting()
    assert PredictionLog(file, {"model": 1}).run(BATCHES, rest) == [10, 20, 30, 40, 50]
    assert rest.calls == 1
    again = Counting()
    assert PredictionLog(file, {"model": 1}).run(BATCHES, again) == [10, 20, 30, 40, 50]
    assert again.calls == 0
    assert PredictionLog(file, {"model": 1}).read() == {0: [10, 20], 1: [30, 40], 2: [50]}


@pytest.mark.parametrize("key", [{"model": 1}, {"model": 2}], ids=["same run", "other run"])
def test_lines_of_a_process_that_wakes_after_it_was_taken_over(tmp_path: Path, key: dict[str, int]) -> None:
    woken, file = tmp_path / "woken.jsonl", tmp_path / "task.jsonl"
    PredictionLog(woken, key).run(
        BATCHES, lambda batch: [(10 if key["model"] == 1 else -1) * item for item in batch]
    )
    interrupted(file)
    lines = file.read_text().splitlines()
    late = woken.read_text().splitlines()
    file.write_text("\n".join([lines[0], late[2], late[0], lines[1], late[1]]) + "\n")
    compute = Counting()
    assert PredictionLog(file, {"model": 1}).run(BATCHES, compute) == [10, 20, 30, 40, 50]
    assert compute.calls == (0 if key["model"] == 1 else 1)


@pytest.mark.parametrize("damage", ["cut", "other key", "other batches", "nonsense", "old format"])
def test_what_does_not_fit_is_predicted_anew(tmp_path: Path, damage: str) -> None:
    file = tmp_path / "task.jsonl"
    interrupted(file)
    key, batches = {"model": 1}, BATCHES
    if damage == "cut":
        file.write_text(file.read_text()[:-4])
    elif damage == "other key":
        key = {"model": 2}
    elif damage == "other batches":
        batches = [[1], [2, 3], [4, 5]]
    elif damage == "old format":
        lines = file.read_text().splitlines()
        old = [{"key": json.loads(lines[0])["key"]}, [0, 0], [0, 0]]
        file.write_text("".join(json.dumps(line) + "\n" for line in old))
    else:
        file.write_text("not json\n[1]\n")
    compute = Counting()
    assert PredictionLog(file, key).run(batches, compute) == [10, 20, 30, 40, 50]
    assert compute.calls == (2 if damage == "cut" else 3)
    assert PredictionLog(file, key).run(batches, Counting(stop_at=0)) == [10, 20, 30, 40, 50]


@pytest.mark.parametrize("predict", [lambda batch: batch[1:], lambda batch: [*batch, 0]])
def test_another_number_of_predictions_than_items_is_refused(
    predict: Callable[[list[int]], list[int]],
) -> None:
    """The metric was one of fewer items, without a message."""
    with pytest.raises(UserError, match=r"a task returned \d predictions for a batch of 2 items"):
        IN_MEMORY.run(BATCHES, predict)


def test_without_a_file_nothing_is_kept() -> None:
    for _ in range(2):
        compute = Counting()
        assert IN_MEMORY.run(BATCHES, compute) == [10, 20, 30, 40, 50]
        assert compute.calls == 3


def test_where_memory_runs_out_halves_are_tried(caplog: pytest.LogCaptureFixture) -> None:
    tried: list[int] = []

    def small(batch: list[int]) -> list[int]:
        tried.append(len(batch))
        if len(batch) > 2:
            raise torch.OutOfMemoryError("no room")
        return [10 * item for item in batch]

    assert IN_MEMORY.run([[1, 2, 3, 4, 5], [6]], small) == [10, 20, 30, 40, 50, 60]
    assert tried == [5, 2, 3, 1, 2, 1]
    assert "task.batch_size=2" in caplog.text

    def never(batch: list[int]) -> list[int]:
        raise torch.OutOfMemoryError("no room")

    with pytest.raises(torch.OutOfMemoryError):
        IN_MEMORY.run(BATCHES, never)
