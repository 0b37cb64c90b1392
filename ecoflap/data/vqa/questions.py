"""Ask the held-out questions of a data set, and score the answers: common to VQAv2, OK-VQA and GQA."""

from __future__ import annotations

import hashlib
import json
import logging
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any, ClassVar

import torch

from ecoflap.data.example import Generation
from ecoflap.data.folder import require_images
from ecoflap.data.sources import picture_sources
from ecoflap.data.vqa.accuracy import vqa_accuracy
from ecoflap.data.vqa.hub import HubQuestions
from ecoflap.data.vqa.options import PublishedQuestionsOptions
from ecoflap.data.vqa.reading import Question, clean_question
from ecoflap.errors import require_positive
from ecoflap.evaluate.inputs import error_of_mean, fingerprint_of, parts, spread
from ecoflap.evaluate.items import Items
from ecoflap.evaluate.prediction_log import IN_MEMORY, PredictionLog
from ecoflap.evaluate.protocol import WritesText
from ecoflap.models.core.prunable import PrunableModel

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Choices:
    """Answers that a model chooses from.

    Attributes:
        answers: all of them.
        k: how many are looked at to their end.
    """

    answers: tuple[str, ...]
    k: int


@dataclass(frozen=True)
class PublishedQuestions(PublishedQuestionsOptions, WritesText, ABC):
    """The common part of the three tasks; the defaults are those of BLIP-2's publication."""

    metric: ClassVar[str] = "VQA accuracy"
    obtain: ClassVar[str]
    hub: ClassVar[HubQuestions]

    def __post_init__(self) -> None:
        require_positive("task", self, "limit", "batch_size", "beams", "max_new_tokens")

    def load(self, model: PrunableModel) -> QuestionsEvaluation:
        """Read the questions.

        Raises:
            UserError: if files or pictures are missing, the model answers no questions, or the limit is out
                of range.
        """
        self.check_model(model)
        questions = self.chosen()
        if self.path is None:
            self.hub.write_pictures(questions, f"task={self.name}")
        self.require_pictures(questions)
        asked = (
            [replace(one, text=clean_question(one.text)) for one in questions] if self.clean else questions
        )
        return QuestionsEvaluation(self, asked, model.interface, self.choices())

    def check_data(self, group: str) -> None:
        """Refuse missing questions, answers or pictures; the hub's pictures are fetched later.

        Raises:
            UserError: if questions, answers or pictures are missing.
        """
        questions = self.chosen()
        self.choices()
        if self.path is not None:
            self.require_pictures(questions)

    def chosen(self) -> list[Question]:
        """The questions to ask.

        Raises:
            UserError: if they are missing, or the limit is out of range.
        """
        return spread(self.read(), self.limit, "questions")

    def require_pictures(self, questions: Sequence[Question]) -> None:
        """Refuse questions about missing pictures.

        Raises:
            UserError: if pictures are missing.
        """
        require_images((one.image for one in questions), f"task={self.name}", self.obtain)

    def choices(self) -> Choices | None:
        """The answers that the model chooses from; None if it writes its own."""
        return None

    @abstractmethod
    def read(self) -> list[Question]:
        """All questions of the split."""

    def score(self, answer: str, question: Question) -> float:
        """The score of an answer, from 0 to 1."""
        return vqa_accuracy(answer, question.answers)


@dataclass
class QuestionsEvaluation:
    """A task with its questions in memory; call it with a model."""

    task: PublishedQuestions
    questions: list[Question]
    interface: Any
    choices: Choices | None = None

    @property
    def sources(self) -> frozenset[str]:
        """The sources of the data, which must not be used for calibration."""
        return picture_sources(one.image for one in self.questions)

    def identity(self) -> dict[str, Any]:
        """Everything that the metrics depend on beside the model."""
        asked = [
            (one.id, one.text, one.answers, one.question_type, one.answer_type) for one in self.questions
        ]
        inputs = fingerprint_of(asked, (one.image for one in self.questions), self.interface)
        elsewhere = ("path", "limit", "batch_size", "clean", "answer_list", "k_test")
        options = {key: value for key, value in vars(self.task).items() if key not in elsewhere}
        choices = None
        if self.choices is not None:
            choices = hashlib.blake2b(repr(self.choices).encode(), digest_size=16).hexdigest()
        return {"metric": self.task.metric, "inputs": inputs, "choices": choices, **options}

    def chance(self) -> float:
        """The accuracy of giving the commonest answer to each question, in percent; NaN if none is public."""
        counts = Counter(answer for one in self.questions for answer in one.answers)
        if not counts:
            return float("nan")
        answer = counts.most_common(1)[0][0]
        return 100 * fmean(self.task.score(answer, one) for one in self.questions)

    @torch.no_grad()
    def __call__(self, model: PrunableModel, prediction_log: PredictionLog = IN_MEMORY) -> dict[str, float]:
        """Accuracy in percent over all questions, per answer type and per question type, and their number.

        If the right answers are not public, it is the number alone, and the answers are written to a file.
        """
        model.module.eval()
        answers = prediction_log.run(
            parts(self.questions, self.task.batch_size), lambda batch: self._ask(model, batch)
        )
        if not any(one.answers for one in self.questions):
            self._write_for_evalai(answers, prediction_log)
            return {"questions": len(answers)}
        scores = [self.task.score(answer, one) for answer, one in zip(answers, self.questions, strict=True)]
        examples = [one.example() for one in self.questions]
        prediction_log.note(Items("accuracy", scores, answers=answers, examples=examples))
        by_answer = _means(
            [f"accuracy_{one.answer_type.replace('/', '_')}" for one in self.questions], scores
        )
        by_question = _means([one.question_type for one in self.questions], scores)
        return {
            "accuracy": 100 * fmean(scores),
            **by_answer,
            **by_question,
            "questions": len(scores),
            "accuracy_stderr": 100 * error_of_mean(scores),
        }

    def _ask(self, model: PrunableModel, questions: Sequence[Question]) -> list[str]:
        examples = [one.example() for one in questions]
        if self.choices is not None:
            chosen: list[str] = self.interface.rank(model, examples, self.choices.answers, self.choices.k)
            return chosen
        generation = Generation(
            self.task.beams, self.task.max_new_tokens, length_penalty=self.task.length_penalty
        )
        written: list[str] = self.interface.answer(model, examples, generation)
        return written

    def _write_for_evalai(self, answers: Sequence[str], prediction_log: PredictionLog) -> None:
        """Write ``[{"question_id": ..., "answer": ...}]`` for EvalAI, beside the prediction log."""
        if prediction_log.file is None:
            return
        file = prediction_log.file.with_name(f"{prediction_log.file.stem}_evalai.json")
        rows = [
            {"question_id": int(one.id), "answer": answer}
            for one, answer in zip(self.questions, answers, strict=True)
        ]
        file.write_text(json.dumps(rows), encoding="utf-8")
        log.info("%s: its answers are not public; EvalAI scores %s", self.task.name, file)


def _means(kinds: Sequence[str], scores: Sequence[float]) -> dict[str, float]:
    """{kind: its mean score in percent}, sorted by kind."""
    grouped: dict[str, list[float]] = {}
    for kind, score in zip(kinds, scores, strict=True):
        grouped.setdefault(kind, []).append(score)
    return {kind: 100 * fmean(grouped[kind]) for kind in sorted(grouped)}
