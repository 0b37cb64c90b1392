"""What a record says of a task's data: it is published, and so holds hashes in place of contents."""

from __future__ import annotations

import json
from typing import Any

from ecoflap.run.steps.evaluation import LONGEST, without_contents


def test_a_test_set_in_an_identity_does_not_reach_the_record() -> None:
    questions = [f"question {number}?" for number in range(400)]
    identity: dict[str, Any] = {"metric": "accuracy", "inputs": questions, "limit": None}
    shown = without_contents(identity)
    assert "question" not in json.dumps(shown)
    assert (shown["metric"], shown["limit"], len(shown["inputs"])) == ("accuracy", None, 32)
    assert without_contents({**identity, "inputs": questions[::-1]})["inputs"] != shown["inputs"]


def test_many_values_that_are_too_long_together_are_hashed_from_the_longest_on() -> None:
    identity = {"metric": "accuracy", **{f"{number:03}": "x" * (50 + number) for number in range(100)}}
    shown = without_contents(identity)
    stay = [key for key, value in shown.items() if value == identity[key]]
    assert shown["metric"] == "accuracy"
    assert stay == list(identity)[: len(stay)]
    assert LONGEST - 150 < sum(len(json.dumps(identity[key])) for key in stay) <= LONGEST


def test_settings_and_the_directions_of_metrics_stay() -> None:
    identity = {
        "tasks": ["a", "b"],
        "higher_is_better": {f"task {number}/acc": True for number in range(500)},
    }
    assert without_contents(identity) == identity
