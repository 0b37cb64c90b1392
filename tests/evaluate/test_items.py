"""What runs keep of their items for reports: the scores, the most changed examples, and a passage."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from ecoflap.data.example import Example
from ecoflap.evaluate.items import SHOWN, Items, write_items
from ecoflap.evaluate.prediction_log import IN_MEMORY, PredictionLog
from ecoflap.storage.results import Result
from tests.cli.conftest import run, text_run, tiny_llama, token_file  # noqa: F401


@pytest.fixture
def pictures(tmp_path: Path) -> list[Example]:
    for index in range(20):
        Image.new("RGB", (400, 300), (index, 0, 0)).save(tmp_path / f"{index}.png")
    return [Example(f"what {index}?", "yes", str(tmp_path / f"{index}.png")) for index in range(20)]


def read(file: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(file.read_text())
    return content


def test_examples_whose_answer_became_wrong_come_first(tmp_path: Path, pictures: list[Example]) -> None:
    dense = Items("accuracy", [1.0] * 19 + [0.0], answers=["yes"] * 19 + ["no"], examples=pictures)
    answers = ["no" if index in (7, 11) else "yes" for index in range(20)]
    answers[19] = "maybe"
    pruned = Items("accuracy", [float(word == "yes") for word in answers], answers=answers, examples=pictures)
    write_items(tmp_path / "items.json", dense.to_json(), pruned)
    found = read(tmp_path / "items.json")
    shown = [(one["question"], one["dense"], one["pruned"]) for one in found["examples"]]
    assert shown[:3] == [("what 7?", "yes", "no"), ("what 11?", "yes", "no"), ("what 19?", "no", "maybe")]
    assert len(shown) == SHOWN
    assert all(one["picture"].startswith("data:image/jpeg;base64,") for one in found["examples"])
    assert found["dense"] == [1.0] * 19 + [0.0]


def test_of_captions_without_scores_those_that_share_the_fewest_words_come_first(
    tmp_path: Path, pictures: list[Example]
) -> None:
    dense = Items("cider", (), answers=["a red cat"] * 20, examples=pictures)
    answers = ["a red cat"] * 20
    answers[4], answers[9] = "a red dog", "two birds"
    write_items(
        tmp_path / "items.json", dense.to_json(), Items("cider", (), answers=answers, examples=pictures)
    )
    found = read(tmp_path / "items.json")
    assert [one["pruned"] for one in found["examples"][:3]] == ["two birds", "a red dog", "a red cat"]
    assert found["pruned"] == []


def test_a_score_that_is_rounded_in_the_record_of_the_dense_model_has_not_fallen(
    tmp_path: Path, pictures: list[Example]
) -> None:
    scores, answers = [2 / 3] * 19 + [0.0], ["a red cat"] * 19
    dense = Items("cider", scores, answers=[*answers, "a blue cat"], examples=pictures)
    pruned = Items("cider", scores, answers=[*answers, "two birds"], examples=pictures)
    write_items(tmp_path / "items.json", dense.to_json(), pruned)
    assert read(tmp_path / "items.json")["examples"][0]["pruned"] == "two birds"


@pytest.mark.parametrize("scores", [None, [1.0]])
def test_without_the_dense_scores_of_the_same_items_no_example_is_kept(
    tmp_path: Path, pictures: list[Example], scores: list[float] | None
) -> None:
    dense = None if scores is None else Items("accuracy", scores, answers=["yes"]).to_json()
    write_items(
        tmp_path / "items.json", dense, Items("accuracy", [1.0] * 20, answers=["yes"] * 20, examples=pictures)
    )
    found = read(tmp_path / "items.json")
    assert (found["dense"], found["examples"]) == (None, [])
    assert found["pruned"] == [1.0] * 20


def test_a_log_in_memory_keeps_nothing(tmp_path: Path) -> None:
    items = Items("accuracy", [1.0])
    IN_MEMORY.note(items)
    assert IN_MEMORY.items is None
    log = PredictionLog(tmp_path / "log.jsonl")
    log.note(items)
    assert log.items is items


def test_every_run_of_a_sweep_keeps_dense_scores_though_they_come_from_the_cache(
    run: Callable[..., Result],
    text_run: list[str],
    tmp_path: Path,
) -> None:
    results = {name: run([*text_run, f"sparsity={name}"], name) for name in ("0.3", "0.6")}
    found = {}
    for name, result in results.items():
        (file,) = (tmp_path / name / "predictions").glob("*_pruned_items.json")
        found[name] = read(file)
        (task,) = result.metrics["pruned"].values()
        assert len(found[name]["pruned"]) == task["rows"]
        assert sum(found[name]["pruned"]) / task["rows"] == pytest.approx(task["loss"], rel=1e-5)
        assert all(len(one) == 3 for one in found[name]["passage"])
    assert results["0.6"].steps["evaluate_dense"]["cached"]
    assert found["0.3"]["dense"] == found["0.6"]["dense"] != found["0.6"]["pruned"]
    assert [one[:2] for one in found["0.3"]["passage"]] == [one[:2] for one in found["0.6"]["passage"]]
    assert len(found["0.3"]["passage"]) > 5
