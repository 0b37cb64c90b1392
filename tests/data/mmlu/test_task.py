"""MMLU's folder, prompts and metric, with an interface that knows all answers or none."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ecoflap.data.example import Example, Generation
from ecoflap.data.mmlu.calibration import Mmlu as MmluCalibration
from ecoflap.data.mmlu.calibration_error import expected_calibration_error, rms_calibration_error
from ecoflap.data.mmlu.categories import CATEGORIES, GROUPS
from ecoflap.data.mmlu.reading import Question, prompt, read_subjects
from ecoflap.data.mmlu.task import Mmlu, fitting_prompt
from ecoflap.errors import NumericalError, UserError
from ecoflap.evaluate.overlap import refuse_overlap
from ecoflap.models.core.protocols import Chooses
from ecoflap.models.core.prunable import PrunableModel
from ecoflap.models.families.language.interface import LanguageInterface
from tests import tiny

ROWS = {
    ("dev", "high_school_physics"): [
        ["What falls?", "all", "none, ever", "some", "few", "A"],
        ["What floats?", "a", "b", "c", "d", "D"],
    ],
    ("test", "high_school_physics"): [
        ["What is 1?", "1", "2", "3", "4", "A"],
        ["What is 2?", "1", "2", "3", "4", "B"],
    ],
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
    (tmp_path / "test" / "._law_test.csv").write_bytes(b"\0 as macOS writes it beside files")
    return tmp_path


class Knows:
    """Chooses the right letter of the questions that it knows, else A."""

    def __init__(self, right: dict[str, str]) -> None:
        self.right, self.asked = right, [""]

    def choose(self, model: PrunableModel, texts: Sequence[str], choices: Sequence[str]) -> Tensor:
        self.asked += texts
        letters = [
            next(
                (letter for question, letter in self.right.items() if question in text.split("\n\n")[-1]), "A"
            )
            for text in texts
        ]
        return torch.tensor([[float(choice == letter) for choice in choices] for letter in letters])

    def length(self, text: str) -> int:
        return len(text.split())

    def encode(self, example: Any) -> dict[str, Tensor]:
        return {"input_ids": torch.tensor([len(example.text)]), "labels": torch.tensor([ord(example.target)])}


class Words:
    """A tokenizer whose words are ids, after a token for the beginning; it has none for padding."""

    pad_token_id, eos_token_id = None, None

    def __call__(self, text: str, add_special_tokens: bool = True) -> dict[str, list[int]]:
        ids = [int(word) if word.isdigit() else 2 for word in text.split()]
        return {"input_ids": [1, *ids] if add_special_tokens else ids}

    def batch_decode(self, rows: Tensor, skip_special_tokens: bool) -> list[str]:
        return [" ".join(str(token) for token in row if token > 2) for row in rows.tolist()]


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
    sure, errors = math.e / (math.e + 3), ("rms_calibration_error", "expected_calibration_error")
    assert list(found) == [
        "accuracy",
        "category/STEM",
        "subcategory/physics",
        "high_school_physics",
        "law",
        *errors,
        "questions",
        "accuracy_stderr",
    ]
    assert found["accuracy_stderr"] == pytest.approx(100 / 3)  # of 1, 0 and 1: s is sqrt(1/3)
    assert found["accuracy"] == pytest.approx(200 / 3)
    assert (
        found["category/STEM"],
        found["subcategory/physics"],
        found["high_school_physics"],
        found["law"],
    ) == (50, 50, 50, 100)
    assert [found[error] for error in errors] == pytest.approx([100 * (2 / 3 - sure)] * 2)
    assert knows.interface.asked[1].count("Answer:") == 2


def test_identity_changes_with_what_the_numbers_depend_on(folder: Path) -> None:
    def identity(**options: Any) -> dict[str, Any]:
        return Mmlu(str(folder), **options).load(model({})).identity()

    first = identity(shots=1)
    assert first == identity(shots=1, batch_size=3)
    assert first not in (identity(shots=0), identity(shots=1, limit=1))
    (folder / "test" / "law_test.csv").write_text("Who rules?,w,x,y,z,D\n")
    assert first != identity(shots=1)


def test_every_subject_has_one_place() -> None:
    assert (
        len(GROUPS)
        == sum(len(subjects) for subcategories in CATEGORIES.values() for subjects in subcategories.values())
        == 57
    )
    assert [len(subcategories) for subcategories in CATEGORIES.values()] == [6, 3, 5, 3]
    assert GROUPS["philosophy"] == ("humanities", "philosophy")
    assert GROUPS["professional_accounting"] == ("other", "other")


def test_category_is_a_mean_over_questions(folder: Path) -> None:
    rows = [
        ["What is 1?", "1", "2", "3", "4", "A"],
        ["What is 2?", "1", "2", "3", "4", "A"],
        ["What is 3?", "1", "2", "3", "4", "B"],
    ]
    with (folder / "test" / "college_physics_test.csv").open("w", newline="") as file:
        csv.writer(file).writerows([*rows, *rows])
    found = Mmlu(str(folder), shots=0).load(model({}))(model({}))
    assert (found["college_physics"], found["high_school_physics"]) == (pytest.approx(400 / 6), 50)
    assert found["category/STEM"] == found["subcategory/physics"] == pytest.approx(500 / 8)


def test_logits_that_are_not_finite(folder: Path) -> None:
    class Broken(Knows):
        def choose(self, model: PrunableModel, texts: Sequence[str], choices: Sequence[str]) -> Tensor:
            return torch.full((len(texts), len(choices)), float("nan"))

    broken = replace(model({}), interface=Broken({}))
    with pytest.raises(NumericalError, match="not finite"):
        Mmlu(str(folder), shots=0).load(broken)(broken)


def test_calibration_errors_by_hand() -> None:
    confidence, right = (
        torch.tensor([0.9, 0.3, 0.6, 0.8, 0.4]),
        torch.tensor([True, False, True, False, True]),
    )
    # Sorted: 0.3 and 0.4 with one right, then 0.6, 0.8 and 0.9 with two right, the last bin being the longer
    # one.
    gaps = (abs(1 / 2 - 0.35), abs(2 / 3 - 2.3 / 3))
    assert rms_calibration_error(confidence, right, size=2) == pytest.approx(
        100 * math.sqrt((2 * gaps[0] ** 2 + 3 * gaps[1] ** 2) / 5)
    )
    assert rms_calibration_error(confidence, right) == pytest.approx(100 * abs(3 / 5 - 3 / 5), abs=1e-5)
    # Up to a half: 0.3 and 0.4; above: the others.
    assert expected_calibration_error(confidence, right, count=2) == pytest.approx(
        100 * (2 * gaps[0] + 3 * gaps[1]) / 5
    )
    edge = torch.tensor([0.5, 1.0])
    for second, error in ((True, 25), (False, 75)):  # both 25 if 0.5 were in the upper bin
        found = expected_calibration_error(edge, torch.tensor([True, second]), count=2)
        assert found == pytest.approx(error)
    assert expected_calibration_error(torch.tensor([0.0, 1.0]), torch.tensor([False, True])) == 0


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt"])
def test_decoder_models_choose_and_answer(family: str) -> None:
    built = tiny.build(family)
    interface = LanguageInterface(Words())
    asking = PrunableModel("tiny", built.module, (), (), (), built.loss_function, Words(), interface)
    texts, choices = ["5 6 7 8", "9", "10 11"], ["12", "13 14"]
    found = interface.choose(asking, texts, choices)
    written = interface.answer(asking, [Example(text) for text in texts], Generation(max_new_tokens=3))
    for row, text, answer in zip(found, texts, written, strict=True):
        ids = torch.tensor([Words()(text)["input_ids"]])
        alone = built.module(input_ids=ids).logits[0, -1].log_softmax(dim=-1)
        torch.testing.assert_close(row, alone[[12, 13]], rtol=1e-4, atol=1e-5)
        plain = built.module.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=3,
            do_sample=False,
            pad_token_id=0,
        )
        assert answer == Words().batch_decode(plain[:, ids.shape[1] :], skip_special_tokens=True)[0]
    assert isinstance(interface, Chooses)
    assert interface.length("5 6") == 3


def test_shots_are_dropped_until_the_prompt_fits(folder: Path) -> None:
    knows, dev = Knows({}), read_subjects(str(folder), "dev", "task")["high_school_physics"]
    question = Question("Q?", ("1", "2", "3", "4"), "A")
    lengths = [knows.length(prompt("s", dev[:count], question)) for count in range(3)]
    assert [fitting_prompt(knows, "s", dev, question, room).count("Answer:") for room in (*lengths, 1)] == [
        1,
        2,
        3,
        1,
    ]


@pytest.mark.parametrize(("group", "kind"), [("task", Mmlu), ("calibration", MmluCalibration)])
def test_shots_below_none_are_refused(group: str, kind: type[Mmlu | MmluCalibration]) -> None:
    """As an end of the answered examples, -1 would take all but one."""
    with pytest.raises(UserError, match=rf"{group}\.shots=-1 must be at least 0"):
        kind(shots=-1)


def test_fewer_shots_than_asked_for_are_told(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    for shots in (0, 1):
        Mmlu(str(folder), shots=shots).load(model({}))
        MmluCalibration(str(folder), shots=shots).load(model({}), 0)
    assert not caplog.messages
    Mmlu(str(folder), shots=3).load(model({}))
    MmluCalibration(str(folder), shots=2).load(model({}), 0)
    told = "shots={} was asked for and the dev split has only 1 of law"
    assert caplog.messages == [f"task.{told.format(3)}", f"calibration.{told.format(2)}"]


def test_no_shots_need_no_dev_questions(folder: Path) -> None:
    for file in (folder / "dev").glob("*"):
        file.unlink()
    knows = model({})
    assert Mmlu(str(folder), shots=0).load(knows)(knows)["questions"] == 3


def test_a_subject_without_answered_examples_is_refused(folder: Path) -> None:
    (folder / "dev" / "law_dev.csv").unlink()
    message = r"task\.shots: 'law' has no answered examples.*dev/law_dev\.csv; add them, or set task\.shots=0"
    with pytest.raises(UserError, match=message):
        Mmlu(str(folder), shots=1).check_data("task")
    with pytest.raises(UserError, match=r"calibration\.shots: 'law'.*dev/law_dev\.csv"):
        MmluCalibration(str(folder), shots=1).check_data("calibration")
    Mmlu(str(folder), shots=0).check_data("task")
    MmluCalibration(str(folder)).check_data("calibration")


def test_questions_of_no_subject_have_no_heading_and_no_shots(monkeypatch: pytest.MonkeyPatch) -> None:
    """All of the hub's auxiliary_train."""
    import datasets

    def load_dataset(name: str, config: str, split: str) -> datasets.Dataset:
        subject = "" if split == "auxiliary_train" else "law"
        row = {"question": "q?", "subject": subject, "choices": ["w", "x", "y", "z"], "answer": 1}
        return datasets.Dataset.from_list([row])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    written: list[Example] = []
    monkeypatch.setattr(
        Knows, "encode", lambda _, example: written.append(example) or {"input_ids": torch.ones(1)}
    )
    MmluCalibration(split="train").load(model({}), 0)
    assert written == [Example("q?\nA. w\nB. x\nC. y\nD. z\nAnswer:", "B")]
    message = r"calibration\.shots: .* of no subject, to which .*; set calibration\.shots=0$"
    with pytest.raises(UserError, match=message):
        MmluCalibration(split="train", shots=1).check_data("calibration")
    MmluCalibration(split="val", shots=1).check_data("calibration")


def test_a_question_is_not_among_its_own_shots(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Example] = []

    def keep(model: PrunableModel, examples: Sequence[Example], option: str) -> tuple[()]:
        drawn.extend(examples)
        return ()

    monkeypatch.setattr("ecoflap.data.mmlu.calibration.encode_all", keep)
    MmluCalibration(str(folder), shots=2, samples=3, split="dev").load(model({}), 0)
    assert len(drawn) == 3
    for example in drawn:
        asked = example.text.split("\n\n")[-1]
        assert example.text.count(asked) == 1
        assert example.text.count("Answer: ") == ("physics" in example.text)  # the other one, if there is one


def test_shots_are_not_measured(folder: Path) -> None:
    knows = model({})
    task, drawn = Mmlu(str(folder), shots=2).load(knows), MmluCalibration(str(folder), samples=2, split="dev")
    assert len(task.sources) == 3
    refuse_overlap(drawn.load(knows, 0), {"mmlu": task})


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
    with pytest.raises(
        UserError,
        match=r"law_test\.csv, row 1: expected question, four options and a letter A to D, found 4 columns",
    ):
        Mmlu(str(folder)).load(model({}))
    deaf = PrunableModel("deaf", nn.Module(), (), (), (), lambda *_: torch.zeros(1))
    with pytest.raises(UserError, match="task=mmlu needs a model that chooses, and deaf reads only text"):
        Mmlu(str(folder)).load(deaf)


@pytest.mark.parametrize(
    "rows", ['"What?,a,b,c,d,A\n' * 2, '"What?,a,b,c,d,A\n' + "Who?,a,b,c,d,B\n" * 20000]
)
def test_a_quote_that_is_not_closed(folder: Path, rows: str) -> None:
    """Two rows with one each would be one question."""
    (folder / "test" / "law_test.csv").write_text(rows)
    with pytest.raises(UserError, match=r"law_test\.csv can't be read as CSV \(.*\); look for a quote"):
        Mmlu(str(folder), shots=0).load(model({}))


def test_mmlu_from_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    asked = []

    def load_dataset(name: str, config: str, split: str) -> datasets.Dataset:
        asked.append((name, config, split))
        subjects, choices = ["virology", "anatomy", "virology"], [["w", "x", "y", "z"]] * 3
        return datasets.Dataset.from_dict(
            {
                "question": ["one", "two", "three"],
                "subject": subjects,
                "choices": choices,
                "answer": [0, 3, 1],
            }
        )

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert read_subjects(None, "test", "task") == {
        "anatomy": [Question("two", ("w", "x", "y", "z"), "D")],
        "virology": [
            Question("one", ("w", "x", "y", "z"), "A"),
            Question("three", ("w", "x", "y", "z"), "B"),
        ],
    }
    read_subjects(None, "val", "calibration")
    read_subjects(None, "train", "calibration")
    assert asked == [
        ("cais/mmlu", "all", "test"),
        ("cais/mmlu", "all", "validation"),
        ("cais/mmlu", "all", "auxiliary_train"),
    ]
