"""The published files of VQAv2, OK-VQA, GQA and NLVR2, and what is said when they are not there."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from ecoflap.data.folder import require_images
from ecoflap.data.nlvr2.reading import check_splits, read_pairs
from ecoflap.data.vqa.accuracy import vqa_accuracy
from ecoflap.data.vqa.reading import OKVQA, VQAV2, Question, clean_question, read_coco_questions, read_gqa
from ecoflap.errors import UserError
from tests.data.vqa_folders import KINDS, write_coco_questions, write_gqa, write_nlvr2


def test_vqav2(tmp_path: Path) -> None:
    for split in ("train", "val"):
        easy = write_coco_questions(tmp_path, VQAV2, split)
        read = read_coco_questions(VQAV2, str(tmp_path), split, "task")
        assert [one.id for one in read] == [str(10 * number) for number in range(12)]
        assert [(one.text.lower(), one.answers[1]) for one in read] == [
            (one.text, one.target) for one in easy
        ]
        assert all(len(one.answers) == 10 and one.answers[0] == "nothing" for one in read)
        assert all(
            Path(one.image).read_bytes() == Path(other.image or "").read_bytes()
            for one, other in zip(read, easy, strict=True)
        )
        assert {one.answer_type for one in read} == {"yes/no", "other"}
        assert "what is" in {one.question_type for one in read}


def test_okvqa_names_its_categories(tmp_path: Path) -> None:
    write_coco_questions(tmp_path, OKVQA, "val", KINDS)
    read = read_coco_questions(OKVQA, str(tmp_path), "val", "task")
    assert {one.question_type for one in read} == set(KINDS.values())


def test_gqa(tmp_path: Path) -> None:
    easy = write_gqa(tmp_path)
    read = read_gqa(str(tmp_path))
    assert [one.answers for one in read] == [(one.target,) for one in easy]
    assert {(one.question_type, one.answer_type) for one in read} == {("verify", "binary"), ("query", "open")}
    require_images((one.image for one in read), "task=gqa", "")


@pytest.mark.parametrize("pictures", ["", "images"])
def test_nlvr2(tmp_path: Path, pictures: str) -> None:
    for split in ("train", "dev"):
        easy = write_nlvr2(tmp_path, split, pictures)
        read = read_pairs(str(tmp_path), split, "task")
        assert [one.label for one in read] == [int(number % 3 == 0) for number in range(len(easy) - 1)]
        for one, left, right in zip(read, easy, easy[1:], strict=False):
            assert Path(one.image or "").read_bytes() == Path(left.image or "").read_bytes()
            assert Path(one.second_image or "").read_bytes() == Path(right.image or "").read_bytes()


def test_questions_are_asked_as_lavis_asks() -> None:
    assert clean_question('Is this a "No. 1" (big) dog; or not?! ') == "is this a no 1 big dog or not?"


def test_the_target_is_the_most_common_answer() -> None:
    example = Question(
        "1", "What?", "picture.jpg", ("dog", "cat", "cat", "dog", "bird", "cat"), "what", "other"
    ).example()
    assert (example.text, example.target, example.image) == ("What?", "cat", "picture.jpg")


@pytest.mark.parametrize(
    ("read", "message"),
    [
        (
            lambda folder: read_coco_questions(VQAV2, None, "val", "task"),
            r"task=vqav2 needs the data set's folder: task\.path=FOLDER with v2_Open",
        ),
        (
            lambda folder: read_coco_questions(VQAV2, folder, "train", "calibration"),
            r"calibration=vqav2: v2_OpenEnded.*train.*\(no such folder\)",
        ),
        (
            lambda folder: read_coco_questions(OKVQA, None, "val", "task"),
            r"okvqa\.allenai\.org.*val2014\.zip.* of cocodataset\.org",
        ),
        (
            lambda folder: read_gqa(None),
            (
                r"task=gqa needs .* with testdev_balanced_questions\.json in it\. GQA's questions1\.2\.zip"
                r" and images\.zip"
            ),
        ),
        (
            lambda folder: read_pairs(None, "dev", "task"),
            r"task=nlvr2 needs .* with dev\.json in it\..*for research only",
        ),
        (
            lambda folder: require_images([f"{folder}/a.jpg", f"{folder}/a.jpg"], "task=gqa", "Get it."),
            r"task=gqa: 1 of 1 pictures are missing.*Get it",
        ),
        (
            lambda folder: check_splits(["dev", "test2"], "task.splits"),
            r"task\.splits=\['dev', 'test2'\]: choose among train, dev, test1",
        ),
        (lambda folder: check_splits([], "task.splits"), r"task\.splits=\[\]"),
    ],
)
def test_refusals(tmp_path: Path, read: Callable[[str], object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        read(str(tmp_path / "nowhere"))


@pytest.mark.parametrize(("count", "refused"), [(1, True), (3, True), (4, False)])
def test_questions_with_too_few_answers_are_not_measured(tmp_path: Path, count: int, refused: bool) -> None:
    """Of one annotator, no other one agrees with anything: all answers would be wrong."""
    answered(tmp_path, ["dog"] * count)
    if refused:
        with pytest.raises(
            UserError, match="12 questions have fewer than 4 answers, so that nothing scores 100"
        ):
            read_coco_questions(VQAV2, str(tmp_path), "val", "task")
    else:
        assert vqa_accuracy("dog", read_coco_questions(VQAV2, str(tmp_path), "val", "task")[0].answers) == 1
    assert len(read_coco_questions(VQAV2, str(tmp_path), "val", "calibration")) == 12


@pytest.mark.parametrize("answer", [2, None])
def test_answers_that_are_no_texts(tmp_path: Path, answer: object) -> None:
    """No text equals the number 2."""
    answered(tmp_path, [answer] * 10)
    with pytest.raises(
        UserError, match=rf"not as published \(TypeError: the answer {answer} of question \d+ is"
    ):
        read_coco_questions(VQAV2, str(tmp_path), "val", "task")


def answered(folder: Path, answers: list[object]) -> None:
    """VQAv2's val split, with the same answers to all questions."""
    write_coco_questions(folder, VQAV2, "val")
    file = folder / VQAV2.annotations.format(split="val")
    content = json.loads(file.read_text())
    for one in content["annotations"]:
        one["answers"] = [{"answer": answer} for answer in answers]
    file.write_text(json.dumps(content))


def test_files_that_are_not_as_published(tmp_path: Path) -> None:
    write_coco_questions(tmp_path, VQAV2, "val")
    (tmp_path / VQAV2.annotations.format(split="val")).write_text('{"annotations": []}')
    with pytest.raises(UserError, match=r"not as published \(KeyError: 0\).*visualqa\.org"):
        read_coco_questions(VQAV2, str(tmp_path), "val", "task")
    (tmp_path / "testdev_balanced_questions.json").write_text("[1]")
    with pytest.raises(UserError, match=r"testdev_balanced_questions\.json: not as published"):
        read_gqa(str(tmp_path))
    (tmp_path / "dev.json").write_text(
        '\n{"identifier": "dev-1-0-0", "sentence": "So it is.", "label": "Perhaps"}\n'
    )
    with pytest.raises(
        UserError,
        match=(
            r"dev\.json, line 2: expected a JSON object with identifier, sentence and label .* KeyError:"
            r" 'Perhaps'"
        ),
    ):
        read_pairs(str(tmp_path), "dev", "task")
