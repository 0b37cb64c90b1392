"""VQAv2, OK-VQA and GQA: the questions, and each data set's own rule for answers."""

from __future__ import annotations

from dataclasses import dataclass

from typing_extensions import override

from ecoflap.data.vqa.accuracy import exact_match, lemmatized, lemmatizer, vqa_accuracy
from ecoflap.data.vqa.hub import HUB
from ecoflap.data.vqa.options import GqaOptions, OkVqaOptions, VqaV2TaskOptions
from ecoflap.data.vqa.questions import Choices, PublishedQuestions
from ecoflap.data.vqa.reading import (
    GQA_OBTAIN,
    OKVQA,
    VQAV2,
    Question,
    read_answer_list,
    read_coco_questions,
    read_gqa,
    read_test_questions,
)
from ecoflap.errors import UserError, require_choices, require_positive
from ecoflap.models.core.protocols import Ranks
from ecoflap.models.core.prunable import PrunableModel


@dataclass(frozen=True)
class VqaV2(VqaV2TaskOptions, PublishedQuestions):
    """VQAv2."""

    obtain, hub = VQAV2.obtain, HUB["vqav2"]

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive("task", self, "k_test")
        require_choices("task", self)

    @override
    def read(self) -> list[Question]:
        """The 214,354 questions of val, the 107,394 of test-dev or the 447,793 of test."""
        if self.split != "val":
            return read_test_questions(VQAV2, self.path, self.split, "task")
        if self.path is None:
            return self.hub.read("task=vqav2")
        return read_coco_questions(VQAV2, self.path, "val", "task")

    @override
    def check_model(self, model: PrunableModel) -> None:
        """With a list of answers, the model has to choose."""
        super().check_model(model)
        if self.answer_list is not None and not isinstance(model.interface, Ranks):
            raise UserError(
                f"task.answer_list={self.answer_list}: {model.name} can't choose of a list; leave it out, or"
                " take a BLIP, such as blip_vqa"
            )

    @override
    def choices(self) -> Choices | None:
        """The answers of the list.

        Raises:
            UserError: if there is no such list.
        """
        if self.answer_list is None:
            return None
        return Choices(read_answer_list(self.path or "", self.answer_list), self.k_test)


@dataclass(frozen=True)
class OkVqa(OkVqaOptions, PublishedQuestions):
    """OK-VQA's validation split."""

    obtain, hub = OKVQA.obtain, HUB["okvqa"]

    @override
    def read(self) -> list[Question]:
        """The 5,046 questions of val; refuse a missing lemmatiser before hours of answers."""
        if self.lemmatize:
            lemmatizer()
        if self.path is None:
            return self.hub.read("task=okvqa")
        return read_coco_questions(OKVQA, self.path, "val", "task")

    @override
    def score(self, answer: str, question: Question) -> float:
        return vqa_accuracy(lemmatized(answer) if self.lemmatize else answer, question.answers)


@dataclass(frozen=True)
class Gqa(GqaOptions, PublishedQuestions):
    """GQA's balanced testdev split."""

    metric = "exact match"
    obtain, hub = GQA_OBTAIN, HUB["gqa"]

    @override
    def read(self) -> list[Question]:
        """The 12,578 balanced questions of testdev."""
        return self.hub.read("task=gqa") if self.path is None else read_gqa(self.path)

    @override
    def score(self, answer: str, question: Question) -> float:
        """1 for the right answer, else 0."""
        return exact_match(answer, question.answers[0])
