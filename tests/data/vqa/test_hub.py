"""The hub's copies of VQAv2, OK-VQA and GQA give the questions that the published files give; only pictures
that are asked about are written.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
import pytest

from ecoflap.data.vqa.hub import HUB
from ecoflap.data.vqa.questions import PublishedQuestions
from ecoflap.data.vqa.reading import OKVQA, VQAV2, Question, read_coco_questions, read_gqa
from ecoflap.data.vqa.task import Gqa, OkVqa, VqaV2
from ecoflap.errors import UserError
from tests.data.vqa.test_task import Answerer, model
from tests.data.vqa_folders import KINDS, write_coco_questions, write_gqa

TASKS: dict[str, type[PublishedQuestions]] = {"vqav2": VqaV2, "okvqa": OkVqa, "gqa": Gqa}


def published(name: str, folder: Path) -> list[Question]:
    if name == "gqa":
        write_gqa(folder)
        return read_gqa(str(folder))
    source = VQAV2 if name == "vqav2" else OKVQA
    write_coco_questions(folder, source, "val", KINDS if name == "okvqa" else None)
    return read_coco_questions(source, str(folder), "val", "task")


def row(name: str, one: Question, index: int) -> dict[str, Any]:
    """As the hub has it; OK-VQA's question numbers hold the picture's."""
    number = int(Path(one.image).stem[-12:]) if name != "gqa" else 0
    common = {
        "question": one.text,
        "question_type": one.question_type,
        "answer_type": one.answer_type,
        "image": {"path": one.image, "bytes": None},
    }
    if name == "vqav2":
        return {
            **common,
            "question_id": int(one.id),
            "image_id": number,
            "answers": [{"answer": answer} for answer in one.answers],
        }
    if name == "okvqa":
        return {**common, "question_id": str(10 * number + index % 10), "answers": list(one.answers)}
    return {
        "id": one.id,
        "imageId": Path(one.image).stem,
        "question": one.text,
        "answer": one.answers[0],
        "types": {"structural": one.question_type},
    }


@pytest.fixture(params=TASKS)
def hub(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[str, list[Question]]:
    questions = published(request.param, tmp_path)
    rows = [row(request.param, one, index) for index, one in enumerate(questions)]
    pictures = [
        {"id": Path(image).stem, "image": {"path": image, "bytes": None}}
        for image in sorted({one.image for one in questions})
    ]

    def load_dataset(dataset: str, config: str | None, split: str) -> datasets.Dataset:
        assert (dataset, split) == (HUB[request.param].dataset, HUB[request.param].split)
        found = datasets.Dataset.from_list(pictures if config and config.endswith("images") else rows)
        return found.cast_column("image", datasets.Image()) if "image" in found.column_names else found

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    return request.param, questions


def test_the_same_questions_and_pictures(hub: tuple[str, list[Question]], tmp_path: Path) -> None:
    name, questions = hub
    evaluation = TASKS[name](limit=3).load(model(Answerer()))
    assert (
        len({file.name for file in (tmp_path / "cache").rglob("*.jpg")})
        == len({one.image for one in evaluation.questions})
        <= 3
    )
    whole = TASKS[name](clean=False).load(model(Answerer())).questions
    for one, other in zip(whole, questions, strict=True):
        assert (one.text, one.answers, one.question_type, one.answer_type) == (
            other.text,
            other.answers,
            other.question_type,
            other.answer_type,
        )
        assert one.id == other.id or name == "okvqa"
        assert Path(one.image).name == Path(other.image).name
        assert Path(one.image).read_bytes() == Path(other.image).read_bytes()
    assert not list((tmp_path / "cache").rglob("*.jpg.*"))


def test_other_columns_are_named(hub: tuple[str, list[Question]], monkeypatch: pytest.MonkeyPatch) -> None:
    name, _ = hub
    monkeypatch.setattr(
        datasets, "load_dataset", lambda *_, **__: datasets.Dataset.from_dict({"image": ["x"], "text": ["y"]})
    )
    with pytest.raises(UserError, match=rf"task={name}: lmms-lab/.* is not as expected \(KeyError"):
        TASKS[name]().read()
