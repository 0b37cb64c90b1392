"""VQAv2, OK-VQA and GQA: which questions are asked, and each data set's own rule for the answers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ecoflap.data.folder import require_files
from ecoflap.data.vqa.accuracy import exact_match, lemmatized, lemmatizer, vqa_accuracy
from ecoflap.data.vqa.hub import HUB
from ecoflap.data.vqa.questions import Choices, PublishedQuestions
from ecoflap.data.vqa.reading import (
    GQA_OBTAIN,
    GQA_QUESTIONS,
    OKVQA,
    VQAV2,
    Question,
    read_answer_list,
    read_coco_questions,
    read_gqa,
    read_test_questions,
)
from ecoflap.errors import UserError, require_positive
from ecoflap.models.core.protocols import Ranks
from ecoflap.models.core.prunable import PrunableModel

SPLITS = ("val", "test-dev", "test")


@dataclass(frozen=True)
class VqaV2(PublishedQuestions):
    """VQAv2; see ``PublishedQuestions`` for the other options.

    Attributes:
        split: val, or test-dev or test, whose answers are not public: the run writes a file for the EvalAI
            server instead of an accuracy.
        answer_list: a JSON list of answers in the folder, of which the model chooses (how BLIP is measured);
            null lets it write its own.
        k_test: how many of these are looked at to their end: those with the likeliest first tokens.
    """

    split: str = "val"
    answer_list: str | None = None
    k_test: int = 128
    name: str = "vqav2"

    obtain, questions, hub = VQAV2.obtain, VQAV2.questions.format(split="val"), HUB["vqav2"]

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive("task", self, "k_test")
        if self.split not in SPLITS:
            raise UserError(f"task.split={self.split}: VQAv2 is measured on {', '.join(SPLITS)}")

    def locate(self, option: str) -> Path | None:
        """See ``PublishedQuestions``; test questions have files of their own, and are not on the hub."""
        if self.split == "val":
            return super().locate(option)
        return require_files(self.path, VQAV2.unanswered(self.split), option, self.name, self.obtain)

    def read(self) -> list[Question]:
        """The 214,354 questions of val, the 107,394 of test-dev or the 447,793 of test."""
        if self.split != "val":
            return read_test_questions(VQAV2, self.path, self.split, "task")
        return (
            self.hub.read("task=vqav2")
            if self.path is None
            else read_coco_questions(VQAV2, self.path, "val", "task")
        )

    def check_model(self, model: PrunableModel) -> None:
        """See ``PublishedQuestions``; where there is a list, the model has to choose.

        Raises:
            UserError: it can't.
        """
        super().check_model(model)
        if self.answer_list is not None and not isinstance(model.interface, Ranks):
            raise UserError(
                f"task.answer_list={self.answer_list}: {model.name} can't choose of a list; leave it out, or"
                " take a BLIP, such as blip_vqa"
            )

    def choices(self) -> Choices | None:
        """The answers of the list.

        Raises:
            UserError: there is no such list.
        """
        if self.answer_list is None:
            return None
        return Choices(read_answer_list(self.path or "", self.answer_list), self.k_test)


@dataclass(frozen=True)
class OkVqa(PublishedQuestions):
    """OK-VQA's validation split; see ``PublishedQuestions`` for the other options.

    Attributes:
        lemmatize: bring nouns and verbs of answers to their base forms before they are compared, as BLIP-2's
            published figure has it.
    """

    lemmatize: bool = False
    name: str = "okvqa"

    obtain, questions, hub = OKVQA.obtain, OKVQA.questions.format(split="val"), HUB["okvqa"]

    def read(self) -> list[Question]:
        """The 5,046 questions of val. The lemmatiser is looked for now, not after hours of answers."""
        if self.lemmatize:
            lemmatizer()
        return (
            self.hub.read("task=okvqa")
            if self.path is None
            else read_coco_questions(OKVQA, self.path, "val", "task")
        )

    def score(self, answer: str, question: Question) -> float:
        """How right an answer is, from 0 to 1."""
        return vqa_accuracy(lemmatized(answer) if self.lemmatize else answer, question.answers)


@dataclass(frozen=True)
class Gqa(PublishedQuestions):
    """GQA's balanced testdev split; see ``PublishedQuestions`` for the options."""

    name: str = "gqa"

    metric = "exact match"
    obtain, questions, hub = GQA_OBTAIN, GQA_QUESTIONS, HUB["gqa"]

    def read(self) -> list[Question]:
        """The 12,578 balanced questions of testdev."""
        return self.hub.read("task=gqa") if self.path is None else read_gqa(self.path)

    def score(self, answer: str, question: Question) -> float:
        """1 for the right answer, else 0."""
        return exact_match(answer, question.answers[0])
