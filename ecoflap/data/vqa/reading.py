"""VQAv2, OK-VQA and GQA as published: questions about pictures of COCO or GQA, in a local folder."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ecoflap.data.example import Example
from ecoflap.data.folder import read_json, require_file
from ecoflap.errors import UserError


@dataclass(frozen=True)
class Question:
    """A question about a picture.

    Attributes:
        id: its id in the data set.
        text: the question.
        image: path of the picture.
        answers: the answers of all annotators, or the only one; empty if they are not public.
        question_type: such as "what is the" (VQAv2), "Plants and Animals" (OK-VQA) or "query" (GQA).
        answer_type: yes/no, number or other; for GQA binary or open.
    """

    id: str
    text: str
    image: str
    answers: tuple[str, ...]
    question_type: str
    answer_type: str

    def example(self) -> Example:
        """The question as an example, whose target is the most common answer."""
        most = Counter(self.answers).most_common(1)
        return Example(self.text, most[0][0] if most else "", self.image)


@dataclass(frozen=True)
class CocoQuestions:
    """A data set of questions about COCO's pictures, with ten answers each.

    Attributes:
        name: its config option.
        questions: name of the file of questions, with ``{split}``.
        annotations: name of the file of answers, with ``{split}``.
        obtain: where it is to be had.
    """

    name: str
    questions: str
    annotations: str
    obtain: str

    def unanswered(self, split: str) -> str:
        """Name of the file of questions of a split of 2015, whose answers are not public."""
        return self.questions.format(split=split).replace("2014", "2015")


PICTURES = (
    "Its pictures are COCO's: unpack train2014.zip and val2014.zip (test2015.zip for test questions) of"
    " cocodataset.org there"
)
VQAV2 = CocoQuestions(
    "vqav2",
    "v2_OpenEnded_mscoco_{split}2014_questions.json",
    "v2_mscoco_{split}2014_annotations.json",
    f"VQAv2's questions and annotations (CC BY 4.0) are at visualqa.org/download.html. {PICTURES}.",
)
OKVQA = CocoQuestions(
    "okvqa",
    "OpenEnded_mscoco_{split}2014_questions.json",
    "mscoco_{split}2014_annotations.json",
    f"OK-VQA's questions and annotations are at okvqa.allenai.org/download.html. {PICTURES}.",
)
ANNOTATORS = 4
"""How many a question needs for a full score: the answer of each is compared with those of three others."""
ANSWERS_OBTAIN = (
    "BLIP's list of answers is at"
    " storage.googleapis.com/sfr-vision-language-research/datasets/answer_list.json."
)
GQA_QUESTIONS = "testdev_balanced_questions.json"
GQA_OBTAIN = "GQA's questions1.2.zip and images.zip are at cs.stanford.edu/people/dorarad/gqa/download.html."


def read_answer_list(folder: str, file: str) -> tuple[str, ...]:
    """Read a list of answers to choose from.

    Args:
        folder: the folder of the data set.
        file: a JSON list of answers, as a path in the folder or an absolute one.

    Raises:
        UserError: if the file is missing, or is not a list of different answers.
    """
    path = Path(folder).expanduser() / file
    if not path.is_file():
        raise UserError(f"task.answer_list={file}: there is no {path}. {ANSWERS_OBTAIN}")
    answers = read_json(path)
    if (
        not isinstance(answers, list)
        or not answers
        or not all(isinstance(answer, str) and answer for answer in answers)
    ):
        raise UserError(f'task.answer_list={file} must be a JSON list of answers, such as ["yes", "no"]')
    return tuple(dict.fromkeys(answers))


def clean_question(text: str) -> str:
    """A question in lower case without ``.!"()*#:;~``, as LAVIS' BLIP reads it; the question mark stays."""
    return re.sub(r'[.!"()*#:;~]', "", text.lower()).rstrip(" ")


def read_coco_questions(source: CocoQuestions, folder: str | None, split: str, option: str) -> list[Question]:
    """Read all questions of a split, in the file's order.

    Args:
        source: the data set.
        folder: the folder of its files, and of COCO's pictures in ``train2014`` and ``val2014``.
        split: train or val.
        option: the config group of the part, for messages.

    Raises:
        UserError: if a file is missing, or not in the published format.
    """
    names = [name.format(split=split) for name in (source.questions, source.annotations)]
    asked, said = [require_file(folder, name, option, source.name, source.obtain) for name in names]
    with _as_published(f"{asked} and {said.name}", source.obtain):
        content = read_json(said)
        annotations = {entry["question_id"]: entry for entry in content["annotations"]}
        kinds = content.get("question_types", {})  # OK-VQA's annotations only hold the keys of its categories
        pictures = said.parent / f"{split}2014"
        questions = [
            _coco_question(entry, annotations[entry["question_id"]], pictures, kinds)
            for entry in read_json(asked)["questions"]
        ]
    _require_answers(questions, said, measured=option == "task")
    return questions


def read_test_questions(source: CocoQuestions, folder: str | None, split: str, option: str) -> list[Question]:
    """Read all questions of a split of 2015 whose answers are not public, in the file's order.

    Args:
        source: the data set.
        folder: the folder of its file, and of COCO's pictures in ``test2015``.
        split: test-dev or test.
        option: the config group of the part, for messages.

    Raises:
        UserError: if the file is missing, or not in the published format.
    """
    file = require_file(folder, source.unanswered(split), option, source.name, source.obtain)
    pictures = file.parent / "test2015"
    with _as_published(str(file), source.obtain):
        asked = read_json(file)["questions"]
        return [
            Question(
                str(one["question_id"]), one["question"], _picture(pictures, one["image_id"]), (), "", ""
            )
            for one in asked
        ]


def _picture(folder: Path, number: int) -> str:
    return str(folder / f"COCO_{folder.name}_{number:012d}.jpg")


def _coco_question(
    entry: dict[str, Any], annotation: dict[str, Any], pictures: Path, kinds: dict[str, str]
) -> Question:
    kind = annotation["question_type"]
    answers = tuple(answer["answer"] for answer in annotation["answers"])
    if strange := [answer for answer in answers if not isinstance(answer, str)]:
        raise TypeError(f"the answer {strange[0]!r} of question {entry['question_id']} is no text")
    return Question(
        id=str(entry["question_id"]),
        text=entry["question"],
        image=_picture(pictures, entry["image_id"]),
        answers=answers,
        question_type=kinds.get(kind, kind),
        answer_type=annotation["answer_type"],
    )


def read_gqa(folder: str | None) -> list[Question]:
    """Read GQA's balanced testdev questions, in the file's order; all but queries are binary.

    Raises:
        UserError: if the file is missing, or not in the published format.
    """
    file = require_file(folder, GQA_QUESTIONS, "task", "gqa", GQA_OBTAIN)
    with _as_published(str(file), GQA_OBTAIN):
        return [gqa_question(key, entry, file.parent / "images") for key, entry in read_json(file).items()]


def gqa_question(key: str, entry: dict[str, Any], pictures: Path) -> Question:
    """A question from GQA's balanced testdev, whose pictures are in a folder; all but queries are binary."""
    kind = entry["types"]["structural"]
    image = str(pictures / f"{entry['imageId']}.jpg")
    return Question(
        key, entry["question"], image, (entry["answer"],), kind, "open" if kind == "query" else "binary"
    )


def _require_answers(questions: Sequence[Question], file: Path, measured: bool) -> None:
    """Refuse questions without an answer and, of a task, with too few for the full score.

    Raises:
        UserError: if there are any.
    """
    bounds = (
        (1, "no answers"),
        (ANNOTATORS, f"fewer than {ANNOTATORS} answers, so that nothing scores 100 %"),
    )
    for least, what in bounds[: 1 + measured]:
        if silent := [one.id for one in questions if len(one.answers) < least]:
            raise UserError(
                f"{file}: {len(silent)} questions have {what}, such as {silent[0]}; take them out, or"
                " download the file again"
            )


@contextmanager
def _as_published(files: str, obtain: str) -> Iterator[None]:
    """Refuse files whose entries are not as published, where they are read in this context.

    Raises:
        UserError: if reading them raises an error.
    """
    try:
        yield
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{files}: not as published ({type(error).__name__}: {error}). {obtain}") from None
