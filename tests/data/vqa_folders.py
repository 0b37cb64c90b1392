"""Small folders in the layouts that VQAv2, OK-VQA, GQA and NLVR2 are published in, made of Easy-VQA's
questions and pictures.
"""

from __future__ import annotations

import json
import shutil
from functools import cache
from itertools import pairwise
from pathlib import Path

from ecoflap.data.easy_vqa.reading import read_questions
from ecoflap.data.example import Example
from ecoflap.data.vqa.reading import CocoQuestions

# added to the numbers of val's pictures, and twice to test's: no two pictures of COCO have the same
VAL = 100_000
KINDS = {"one": "Shapes and Colours", "two": "Yes and No"}


@cache
def easy_questions(split: str, count: int = 12) -> list[Example]:
    """Of several pictures, with some yes/no questions among them."""
    return read_questions("train" if split == "train" else "test")[: 4 * count : 4]


def copy_picture(question: Example, file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(question.image or "", file)


def number_of(question: Example) -> int:
    """COCO's pictures have numbers, and so do Easy-VQA's."""
    return int(Path(question.image or "").stem)


def write_coco_questions(
    folder: Path, source: CocoQuestions, split: str, kinds: dict[str, str] | None = None
) -> list[Example]:
    """Nine annotators give the right answer, the first another one."""
    questions, asked, said = easy_questions(split), [], []
    for number, question in enumerate(questions):
        closed = question.target in ("yes", "no")
        image_id = number_of(question) + VAL * (split == "val")
        copy_picture(question, folder / f"{split}2014" / f"COCO_{split}2014_{image_id:012d}.jpg")
        asked.append(
            {"image_id": image_id, "question": question.text.capitalize(), "question_id": 10 * number}
        )
        answers = [{"answer": "nothing", "answer_id": 1}] + [
            {"answer": question.target, "answer_id": other} for other in range(2, 11)
        ]
        kind = ("two" if closed else "one") if kinds else " ".join(question.text.split()[:2])
        annotation = {
            "question_id": 10 * number,
            "question_type": kind,
            "answer_type": "yes/no" if closed else "other",
            "answers": answers,
        }
        said.append(annotation)
    (folder / source.questions.format(split=split)).write_text(json.dumps({"questions": asked}))
    annotations = {"annotations": said[::-1], **({"question_types": kinds} if kinds else {})}
    (folder / source.annotations.format(split=split)).write_text(json.dumps(annotations))
    return questions


def write_test_questions(folder: Path, source: CocoQuestions, split: str = "test-dev") -> list[Example]:
    """Questions without answers, and a list of answers to choose from."""
    questions, asked = easy_questions("test"), []
    for number, question in enumerate(questions):
        image_id = number_of(question) + 2 * VAL
        copy_picture(question, folder / "test2015" / f"COCO_test2015_{image_id:012d}.jpg")
        asked.append(
            {"image_id": image_id, "question": question.text.capitalize(), "question_id": 10 * number}
        )
    (folder / source.questions.replace("2014", "2015").format(split=split)).write_text(
        json.dumps({"questions": asked})
    )
    answers = {question.target for question in read_questions("train")}
    (folder / "answer_list.json").write_text(json.dumps(sorted(answers)))
    return questions


def write_gqa(folder: Path) -> list[Example]:
    questions, entries = easy_questions("test"), {}
    for number, question in enumerate(questions):
        copy_picture(question, folder / "images" / f"n{number_of(question)}.jpg")
        kind = "verify" if question.target in ("yes", "no") else "query"
        entries[f"20{number}"] = {
            "question": question.text.capitalize(),
            "answer": question.target,
            "imageId": f"n{number_of(question)}",
            "types": {"structural": kind, "semantic": "attr", "detailed": "any"},
        }
    (folder / "testdev_balanced_questions.json").write_text(json.dumps(entries))
    return questions


def write_nlvr2(folder: Path, split: str, pictures: str = "") -> list[Example]:
    """Pairs of neighbours; every third sentence is true. ``pictures``: the folder that the splits' pictures
    are in.
    """
    questions = easy_questions(split)
    lines = []
    for number, (left, right) in enumerate(pairwise(questions)):
        inner = Path(pictures) / split / (str(number % 2) if split == "train" else "")
        for place, question in enumerate((left, right)):
            copy_picture(question, folder / inner / f"{split}-{number}-1-img{place}.png")
        entry = {
            "identifier": f"{split}-{number}-1-0",
            "sentence": f"Both show {left.target}.",
            "label": str(number % 3 == 0),
        }
        lines.append(json.dumps(entry | ({"directory": number % 2} if split == "train" else {})))
    (folder / f"{split}.json").write_text("\n".join(lines) + "\n")
    return questions
