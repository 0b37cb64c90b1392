"""Whole runs on VQAv2, OK-VQA and GQA in their published layouts: the mini models know Easy-VQA's questions,
of which the folders are made.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from ecoflap.data.vqa.reading import OKVQA, VQAV2
from ecoflap.data.vqa.task import VqaV2
from ecoflap.errors import UserError
from ecoflap.storage.results import Result
from tests.cli.conftest import run  # noqa: F401 - a fixture
from tests.data.vqa_folders import KINDS, write_coco_questions, write_gqa, write_test_questions

pytestmark = pytest.mark.long


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    for split in ("train", "val"):
        write_coco_questions(folder, VQAV2, split)
    write_coco_questions(folder, OKVQA, "val", KINDS)
    write_gqa(folder)
    return folder


@pytest.mark.parametrize("model", ["blip2_mini", "blip_vqa_mini"])
@pytest.mark.parametrize("task", ["vqav2", "okvqa", "gqa"])
@pytest.mark.every_run("vqav2-blip_vqa_mini", "okvqa-blip2_mini", "gqa-blip_vqa_mini")
def test_dense_and_pruned(
    run: Callable[..., Result], folder: Path, tmp_path: Path, model: str, task: str
) -> None:
    calibration = ["calibration=vqav2", f"calibration.path={folder}", "calibration.samples=8"]
    options = ["score=none", "tracking=none", "device=cpu", f"cache={tmp_path / 'cache'}", "sparsity=0.5"]
    result = run(
        [f"model={model}", *calibration, f"task={task}", f"task.path={folder}", "task.limit=6", *options]
    )
    dense, pruned = (result.metrics[which][task] for which in ("dense", "pruned"))
    assert next(iter(dense)) == "accuracy"
    assert dense["accuracy"] > 80
    assert set(pruned) == set(dense)
    assert pruned["questions"] == 6


def test_blips_answers_of_a_list_for_evalai(run: Callable[..., Result], tmp_path: Path) -> None:
    hidden = tmp_path / "test_dev"  # and nothing of any other split
    hidden.mkdir()
    questions = write_test_questions(hidden, VQAV2)
    options = [
        "score=none",
        "tracking=none",
        "device=cpu",
        f"cache={tmp_path / 'cache'}",
        "sparsity=0.1",
        "calibration.samples=8",
    ]
    task = ["task=vqav2_test_dev", f"task.path={hidden}", "task.batch_size=5"]
    result = run(["model=blip_vqa_mini", *task, *options])
    assert result.metrics["dense"] == result.metrics["pruned"] == {"vqav2": {"questions": 12}}
    for which in ("dense", "pruned"):
        rows = json.loads((tmp_path / "run" / "predictions" / f"vqav2_{which}_evalai.json").read_text())
        assert [row["question_id"] for row in rows] == [10 * number for number in range(12)]
        assert (
            sum(row["answer"] == question.target for row, question in zip(rows, questions, strict=True)) > 9
        )


def test_test_questions_are_looked_for_before_a_model_is_loaded(folder: Path) -> None:
    for path in (str(folder), None):  # a folder with val's files alone, and the hub
        with pytest.raises(UserError, match=r"v2_OpenEnded_mscoco_test-dev2015_questions\.json"):
            VqaV2(path=path, split="test-dev").check_data("task")
