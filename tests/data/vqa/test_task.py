"""VQAv2, OK-VQA and GQA, with an interface that knows some answers; their calibration split."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from ecoflap.data.example import Example, Generation
from ecoflap.data.vqa.accuracy import lemmatizer
from ecoflap.data.vqa.calibration import VqaV2 as VqaV2Calibration
from ecoflap.data.vqa.questions import PublishedQuestions
from ecoflap.data.vqa.reading import OKVQA, VQAV2
from ecoflap.data.vqa.task import Gqa, OkVqa, VqaV2
from ecoflap.errors import UserError
from ecoflap.evaluate.prediction_log import PredictionLog
from ecoflap.models.core.prunable import PrunableModel
from tests.data.vqa_folders import KINDS, write_coco_questions, write_gqa, write_test_questions


class Answerer:
    """Says yes to every question; or the right answer, which it finds in the example."""

    prompt = "Question: {} Short answer:"
    sees = True

    def __init__(self, knows: bool = False) -> None:
        self.knows = knows
        self.seen: list[Example] = []
        self.generation = Generation()

    def answer(self, model: PrunableModel, examples: Sequence[Example], generation: Generation) -> list[str]:
        self.seen += examples
        self.generation = generation
        return [f"The {example.target}." if self.knows else "Yes" for example in examples]

    def encode(self, example: Example) -> dict[str, Tensor]:
        return {
            "input_ids": torch.tensor([ord(letter) for letter in example.text]),
            "labels": torch.tensor([len(example.target)]),
        }


def model(interface: object) -> PrunableModel:
    return PrunableModel("tiny", nn.Module(), (), (), (), lambda *_: torch.zeros(1), None, interface)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for split in ("train", "val"):
        write_coco_questions(tmp_path, VQAV2, split)
    write_coco_questions(tmp_path, OKVQA, "val", KINDS)
    write_gqa(tmp_path)
    return tmp_path


@pytest.mark.parametrize("task", [VqaV2, OkVqa, Gqa])
def test_accuracy_over_all_and_by_type(folder: Path, task: type[PublishedQuestions]) -> None:
    knows, says_yes = model(Answerer(knows=True)), model(Answerer())
    assert task(str(folder), batch_size=5).load(knows)(knows)["accuracy"] == 100
    found = task(str(folder), batch_size=5).load(says_yes)(says_yes)
    questions = task(str(folder)).read()
    yes = sum(question.answers[-1] == "yes" for question in questions)
    closed = sum(question.answers[-1] in ("yes", "no") for question in questions)
    assert found["accuracy"] == pytest.approx(100 * yes / len(questions))
    shut, opened, of_type = {
        "vqav2": ("accuracy_yes_no", "accuracy_other", "what is"),
        "okvqa": ("accuracy_yes_no", "accuracy_other", "Shapes and Colours"),
        "gqa": ("accuracy_binary", "accuracy_open", "query"),
    }[task(None).name]
    assert found[shut] == pytest.approx(100 * yes / closed)
    assert found[opened] == found[of_type] == 0
    assert next(iter(found)) == "accuracy"
    assert found["questions"] == len(questions)


def test_asked_as_blip2_was(folder: Path) -> None:
    interface = Answerer()
    VqaV2(str(folder)).load(model(interface))(model(interface))
    assert interface.generation == Generation(beams=5, max_new_tokens=10, length_penalty=-1.0)
    assert all(example.text == example.text.lower() for example in interface.seen)
    VqaV2(str(folder), clean=False).load(model(interface))(model(interface))
    assert interface.seen[-1].text[0].isupper()


def test_limit_is_spread_over_the_file_and_only_its_pictures_are_needed(folder: Path) -> None:
    asked = VqaV2(str(folder), limit=3).load(model(Answerer())).questions
    assert [question.id for question in asked] == ["0", "40", "80"]
    for picture in (folder / "val2014").iterdir():
        if str(picture) not in {question.image for question in asked}:
            picture.unlink()
    VqaV2(str(folder), limit=3).load(model(Answerer()))
    with pytest.raises(
        UserError,
        match=(
            r"task=vqav2: \d+ of \d+ pictures are missing, such as .*COCO_val2014_\d{12}\.jpg\. VQAv2's"
            r" questions"
        ),
    ):
        VqaV2(str(folder)).load(model(Answerer()))


def test_an_interrupted_evaluation_goes_on(folder: Path, tmp_path: Path) -> None:
    class Stops(Answerer):
        def answer(self, *arguments: object) -> list[str]:
            if len(self.seen) == 8:
                raise KeyboardInterrupt
            return super().answer(*arguments)  # type: ignore[arg-type]

    first, second, file = model(Stops()), model(Answerer()), tmp_path / "predictions.jsonl"
    evaluation = VqaV2(str(folder), batch_size=4).load(first)
    with pytest.raises(KeyboardInterrupt):
        evaluation(first, PredictionLog(file, evaluation.identity()))
    again = VqaV2(str(folder), batch_size=4).load(second)
    assert again(second, PredictionLog(file, again.identity()))["questions"] == 12
    assert len(second.interface.seen) == 4


def test_identity_changes_with_what_the_numbers_depend_on(folder: Path) -> None:
    asks = model(Answerer())
    identity = VqaV2(str(folder)).load(asks).identity()
    moved = folder.rename(folder.with_name("moved"))
    assert identity == VqaV2(str(moved), batch_size=3).load(asks).identity()
    assert identity != VqaV2(str(moved), limit=11).load(asks).identity()
    assert identity != VqaV2(str(moved), beams=1).load(asks).identity()
    assert identity != VqaV2(str(moved), clean=False).load(asks).identity()
    other = Answerer()
    other.prompt = "{}"
    assert identity != VqaV2(str(moved)).load(model(other)).identity()
    picture = next((moved / "val2014").iterdir())
    picture.write_bytes(picture.read_bytes()[::-1])  # of the same size
    assert identity != VqaV2(str(moved)).load(asks).identity()


def test_other_right_answers_are_another_identity(folder: Path) -> None:
    evaluation = VqaV2(str(folder)).load(model(Answerer()))
    first, *others = evaluation.questions
    changed = replace(evaluation, questions=[replace(first, answers=(*first.answers[1:], "x")), *others])
    assert changed.identity() != evaluation.identity()


class Ranker(Answerer):
    """Takes the last of the answers that it may look at."""

    def rank(
        self, model: PrunableModel, examples: Sequence[Example], answers: Sequence[str], k: int
    ) -> list[str]:
        return [answers[:k][-1] for _ in examples]


def test_an_answer_is_chosen_from_a_list(folder: Path) -> None:
    (folder / "answer_list.json").write_text(json.dumps(["yes", "no", "yes", "circle"]))
    ranks = model(Ranker())
    chooses = {
        k: VqaV2(str(folder), answer_list="answer_list.json", k_test=k).load(ranks) for k in (1, 2, 128)
    }
    right = Counter(question.answers[-1] for question in chooses[1].questions)
    for k, answer in ((1, "yes"), (2, "no"), (128, "circle")):
        assert chooses[k](ranks)["accuracy"] == pytest.approx(100 * right[answer] / 12)
    written = VqaV2(str(folder)).load(ranks).identity()
    assert (
        len({json.dumps(identity) for identity in (written, *(one.identity() for one in chooses.values()))})
        == 4
    )
    assert written == VqaV2(str(folder), k_test=3).load(ranks).identity(), (
        "k_test means nothing without a list"
    )


def test_answers_that_are_not_public_go_to_evalai(folder: Path, tmp_path: Path) -> None:
    write_test_questions(folder, VQAV2)
    asks, file = model(Answerer()), tmp_path / "predictions" / "vqav2_pruned.jsonl"
    evaluation = VqaV2(str(folder), split="test-dev", limit=5).load(asks)
    assert evaluation(asks, PredictionLog(file, "key")) == {"questions": 5}
    assert json.loads((file.parent / "vqav2_pruned_evalai.json").read_text()) == [
        {"question_id": number, "answer": "Yes"} for number in (0, 20, 40, 70, 90)
    ]
    assert all(
        example.image is not None and "COCO_test2015_" in example.image for example in asks.interface.seen
    )
    assert evaluation.identity() != VqaV2(str(folder), limit=5).load(asks).identity()
    assert evaluation(asks) == {"questions": 5}, "without a file, nothing is written"


def test_splits_and_lists_that_are_not_there(folder: Path) -> None:
    with pytest.raises(UserError, match=r"task\.split=train is not known; the choices are val, test-dev"):
        VqaV2(str(folder), split="train")
    with pytest.raises(UserError, match=r"v2_OpenEnded_mscoco_test2015_questions\.json is not in"):
        VqaV2(str(folder), split="test").load(model(Answerer()))
    with pytest.raises(
        UserError,
        match=r"task\.answer_list=list\.json: tiny can't choose of a list; leave it out, or take a BLIP",
    ):
        VqaV2(str(folder), answer_list="list.json").load(model(Answerer()))
    with pytest.raises(
        UserError,
        match=r"task\.answer_list=list\.json: there is no .*list\.json\. BLIP's list of answers is at",
    ):
        VqaV2(str(folder), answer_list="list.json").load(model(Ranker()))
    for wrong in ({"yes": 1}, [], [1], [""]):
        (folder / "list.json").write_text(json.dumps(wrong))
        with pytest.raises(UserError, match=r"task\.answer_list=list\.json must be a JSON list of answers"):
            VqaV2(str(folder), answer_list="list.json").load(model(Ranker()))
    with pytest.raises(UserError, match=r"task\.k_test=0"):
        VqaV2(str(folder), k_test=0)


def test_okvqa_with_lemmas_needs_spacy_before_anything_else(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "spacy", None)
    lemmatizer.cache_clear()
    with pytest.raises(UserError, match=r"task\.lemmatize=true needs spaCy"):
        OkVqa(str(folder), lemmatize=True).load(model(Answerer()))


def test_calibration_takes_training_questions(folder: Path) -> None:
    drawn = VqaV2Calibration(str(folder), samples=5).load(model(Answerer()), 0)
    texts = ["".join(map(chr, sample["input_ids"].tolist())) for sample in drawn.samples]
    assert len(texts) == 5
    assert all(text == text.lower() and text.endswith("?") for text in texts)
    kept = VqaV2Calibration(str(folder), samples=5, clean=False).load(model(Answerer()), 0)
    assert chr(int(kept.samples[0]["input_ids"][0])).isupper()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: VqaV2(None).load(model(Answerer())),
            r"task=vqav2: lmms-lab/VQAv2 .*from the hub.*task\.path=FOLDER.*visualqa\.org",
        ),
        (
            lambda: Gqa(None).load(model(None)),
            "task=gqa needs a model that describes, and tiny reads only text",
        ),
        (lambda: OkVqa(beams=0), r"task\.beams=0 must be at least 1"),
        (
            lambda: VqaV2Calibration(split="val"),
            r"calibration\.split=val: models are measured on the other splits; choose train",
        ),
        (
            lambda: VqaV2Calibration().load(model(Answerer()), 0),
            r"calibration=vqav2 needs the data set's folder: calibration\.path=FOLDER",
        ),
    ],
)
def test_refusals(make: Callable[[], object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make()


def test_a_data_set_says_how_its_questions_are_read() -> None:
    with pytest.raises(TypeError, match="read"):
        PublishedQuestions()  # type: ignore[abstract]
