"""Easy-VQA: exact-match accuracy on the package's own held-out questions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ecoflap.data.easy_vqa.options import EasyVqaTaskOptions
from ecoflap.data.easy_vqa.reading import read_questions
from ecoflap.data.example import Example, Generation
from ecoflap.data.sources import picture_sources
from ecoflap.errors import require_positive
from ecoflap.evaluate.inputs import commonest, error_of_mean, fingerprint, parts, percent, spread
from ecoflap.evaluate.items import Items
from ecoflap.evaluate.prediction_log import IN_MEMORY, PredictionLog
from ecoflap.evaluate.protocol import WritesText
from ecoflap.models.core.prunable import PrunableModel


@dataclass(frozen=True)
class EasyVqa(EasyVqaTaskOptions, WritesText):
    """Ask the held-out questions and compare the generated answers."""

    def __post_init__(self) -> None:
        require_positive("task", self, "limit", "batch_size", "beams", "max_new_tokens")

    def check_data(self, group: str) -> None:
        """Refuse a limit above the number of questions.

        Raises:
            UserError: if the limit is above the number of questions.
        """
        self.chosen()

    def chosen(self) -> list[Example]:
        """The questions to ask.

        Raises:
            UserError: if the limit is out of range.
        """
        return spread(read_questions("test"), self.limit, "questions")

    def load(self, model: PrunableModel) -> EasyVqaEvaluation:
        """Read the questions.

        Raises:
            UserError: if the model answers no questions, or the limit is out of range.
        """
        self.check_model(model)
        return EasyVqaEvaluation(self, self.chosen(), model.interface)


@dataclass
class EasyVqaEvaluation:
    """The task with its data in memory; call it with a model."""

    task: EasyVqa
    questions: list[Example]
    interface: Any

    @property
    def sources(self) -> frozenset[str]:
        """The sources of the data, which must not be used for calibration."""
        return picture_sources(one.image for one in self.questions)

    def identity(self) -> dict[str, Any]:
        """Everything that the metrics depend on beside the model."""
        generation = {
            "beams": self.task.beams,
            "max_new_tokens": self.task.max_new_tokens,
            "length_penalty": self.task.length_penalty,
        }
        return {"metric": "exact match", "inputs": fingerprint(self.questions, self.interface), **generation}

    def chance(self) -> float:
        """The accuracy of giving the commonest answer to each question, in percent."""
        return commonest(question.target for question in self.questions)

    @torch.no_grad()
    def __call__(self, model: PrunableModel, prediction_log: PredictionLog = IN_MEMORY) -> dict[str, float]:
        """Accuracy in percent, over all, yes/no and other questions, and the number of questions."""
        model.module.eval()
        generation = Generation(
            self.task.beams, self.task.max_new_tokens, length_penalty=self.task.length_penalty
        )
        batches = parts(self.questions, self.task.batch_size)
        answers = prediction_log.run(batches, lambda batch: self.interface.answer(model, batch, generation))
        words = [answer.lower() for answer in answers]
        right = [word == one.target for word, one in zip(words, self.questions, strict=True)]
        prediction_log.note(Items("accuracy", right, answers=words, examples=self.questions))
        return _accuracies(right, self.questions)


def _accuracies(right: Sequence[bool], questions: Sequence[Example]) -> dict[str, float]:
    closed = [question.target in ("yes", "no") for question in questions]
    return {
        "accuracy": percent(right),
        "accuracy_yes_no": percent([r for r, c in zip(right, closed, strict=True) if c]),
        "accuracy_open": percent([r for r, c in zip(right, closed, strict=True) if not c]),
        "questions": len(right),
        "accuracy_stderr": 100 * error_of_mean(right),
    }
