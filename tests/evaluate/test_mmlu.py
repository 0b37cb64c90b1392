"""MMLU's folder, prompts and metric, with an interface that knows all answers or none."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ecoflap.calibrate.mmlu import Mmlu as MmluCalibration
from ecoflap.calibrate.mmlu import Question, prompt, read_subjects
from ecoflap.errors import UserError
from ecoflap.evaluate.mmlu import Mmlu, fitting_prompt
from ecoflap.models.prunable import PrunableModel

ROWS = {
    ("dev", "high_school_physics"): [["What falls?", "all", "none, ever", "some", "few", "A"], ["What floats?", "a", "b", "c", "d", "D"]],
    ("test", "high_school_physics"): [["What is 1?", "1", "2", "3", "4", "A"], ["What is 2?", "1", "2", "3", "4", "B"]],
    ("test", "law"): [["Who rules?", "w", "x", "y", "z", "C"]],
    ("dev", "law"): [["Who asks?", "w", "x", "y", "z", "B"]],
    ("val", "law"): [["Who reads?", "w", "x", "y", "z", "B"]] * 3,
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for (split, subject), rows in ROWS.items():
        (tmp_path / split).mkdir(exist_ok=True)
        with (tmp_path / split / f"{subject}_{split}.csv").open("w", newline="") as file:
            csv.writer(file).writerows(rows)
    return tmp_path


class Knows:
    """Chooses the right letter of the questions that it knows, else A."""

    def __init__(self, right: dict[str, str]) -> None:
        self.right, self.asked = right, [""]

    def choose(self, model: PrunableModel, texts: Sequence[str], choices: Sequence[str]) -> Tensor:
        self.asked += texts
        letters = [next((letter for question, letter in self.right.items() if question in text.split("\n\n")[-1]), "A") for text in texts]
        return torch.tensor([[float(choice == letter) for choice in choices] for letter in letters])

    def length(self, text: str) -> int:
        return len(text.split())

    def encode(self, example: Any) -> dict[str, Tensor]:
        return {"input_ids": torch.tensor([len(example.text)]), "labels": torch.tensor([ord(example.target)])}


def model(right: dict[str, str]) -> PrunableModel:
    return PrunableModel("tiny", nn.Module(), (), (), (), lambda *_: torch.zeros(1), None, Knows(right))


def test_prompt_is_the_harness_own() -> None:
    shot = Question("What falls?", ("all", "none", "some", "few"), "A")
    assert prompt("high_school_physics", [shot], Question("Who?", ("w", "x", "y", "z"), "C")) == (
        "The following are multiple choice questions (with answers) about  high school physics.\n\n"
        "What falls?\nA. all\nB. none\nC. some\nD. few\nAnswer: A\n\n"
        "Who?\nA. w\nB. x\nC. y\nD. z\nAnswer:"
    )


def test_accuracy_over_questions_and_per_subject(folder: Path) -> None:
    knows = model({"What is 1?": "A", "Who rules?": "C"})
    found = Mmlu(str(folder), shots=1, batch_size=2).load(knows)(knows)
    assert found == {"accuracy": pytest.approx(200 / 3), "high_school_physics": 50.0, "law": 100.0, "questions": 3}
    assert knows.interface.asked[1].count("Answer:") == 2


def test_shots_are_dropped_until_the_prompt_fits(folder: Path) -> None:
    knows, dev = Knows({}), read_subjects(str(folder), "dev", "task")["high_school_physics"]
    question = Question("Q?", ("1", "2", "3", "4"), "A")
    lengths = [knows.length(prompt("s", dev[:count], question)) for count in range(3)]
    assert [fitting_prompt(knows, "s", dev, question, room).count("Answer:") for room in (*lengths, 1)] == [1, 2, 3, 1]


def test_no_shots_need_no_dev_questions(folder: Path) -> None:
    for file in (folder / "dev").glob("*"):
        file.unlink()
    knows = model({})
    assert Mmlu(str(folder), shots=0).load(knows)(knows)["questions"] == 3


def test_limit_is_per_subject(folder: Path) -> None:
    knows = model({})
    assert Mmlu(str(folder), limit=1).load(knows)(knows)["questions"] == 2


def test_calibration_takes_no_test_question(folder: Path) -> None:
    samples = MmluCalibration(str(folder), samples=2).load(model({}), 0)
    assert [int(sample["labels"]) for sample in samples.samples] == [ord("B")] * 2
    with pytest.raises(UserError, match="the test questions are what the model is measured on"):
        MmluCalibration(str(folder), split="test")


def test_refusals(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"task\.path=.* has no test/\*_test\.csv"):
        Mmlu(str(tmp_path / "nowhere"), shots=0).load(model({}))
    (folder / "test" / "law_test.csv").write_text("What?,a,b,c\n")
    with pytest.raises(UserError, match=r"law_test\.csv, row 1: expected question, four options and a letter A to D, found 4 columns"):
        Mmlu(str(folder)).load(model({}))
    deaf = PrunableModel("deaf", nn.Module(), (), (), (), lambda *_: torch.zeros(1))
    with pytest.raises(UserError, match="task=mmlu needs a model that chooses, and deaf reads only text"):
        Mmlu(str(folder)).load(deaf)
