"""VQAv2, OK-VQA and GQA: ask the held-out questions and compare the answers by each data set's own rule."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any, ClassVar

import torch

from ecoflap.data.folder import require_files, require_images
from ecoflap.data.sources import picture_sources
from ecoflap.data.vqa import GQA_OBTAIN, GQA_QUESTIONS, OKVQA, VQAV2, Question, clean_question, read_coco_questions, read_gqa
from ecoflap.data.vqa_hub import HUB, HubQuestions
from ecoflap.errors import require_positive
from ecoflap.evaluate.inputs import parts, spread
from ecoflap.evaluate.journal import IN_MEMORY, Journal
from ecoflap.evaluate.vqa_accuracy import exact_match, lemmatized, lemmatizer, vqa_accuracy
from ecoflap.models.examples import Describes, Generation, require
from ecoflap.models.prunable import PrunableModel


@dataclass(frozen=True)
class PublishedQuestions:
    """What the three data sets share; the defaults are those that BLIP-2 was published with.

    Attributes:
        path: folder with the published files and pictures; null for the hub.
        limit: number of questions, evenly spaced; null for all.
        batch_size: questions per generation; changes nothing beyond rounding.
        beams: beam width.
        max_new_tokens: longest answer.
        length_penalty: of the beam search; below 0 it prefers short answers.
        clean: ask in lower case and without most punctuation, as LAVIS does.
        name: for people and result files.
    """

    path: str | None = None
    limit: int | None = None
    batch_size: int = 64
    beams: int = 5
    max_new_tokens: int = 10
    length_penalty: float = -1.0
    clean: bool = True
    name: str = ""

    metric: ClassVar[str] = "VQA accuracy"
    obtain: ClassVar[str]
    questions: ClassVar[str]
    hub: ClassVar[HubQuestions]

    def __post_init__(self) -> None:
        require_positive("task", self, "limit", "batch_size", "beams", "max_new_tokens")

    def load(self, model: PrunableModel) -> QuestionsEvaluation:
        """Read the questions.

        Raises:
            UserError: files or pictures are missing, the model answers no questions, or the limit is out of range.
        """
        interface = require(model, Describes, f"task={self.name}")
        questions = spread(self.read(), self.limit, "questions")
        if self.path is None:
            self.hub.write_pictures(questions, f"task={self.name}")
        require_images((one.image for one in questions), f"task={self.name}", self.obtain)
        asked = [replace(one, text=clean_question(one.text)) for one in questions] if self.clean else questions
        return QuestionsEvaluation(self, asked, interface)

    def read(self) -> list[Question]:
        """All questions of the split that is measured on."""
        raise NotImplementedError

    def locate(self, option: str) -> Path | None:
        """The data set's folder, when its questions are in it; null for the hub.

        Raises:
            UserError: they aren't.
        """
        return None if self.path is None else require_files(self.path, self.questions, option, self.name, self.obtain)

    def score(self, answer: str, question: Question) -> float:
        """How right an answer is, from 0 to 1."""
        return vqa_accuracy(answer, question.answers)


@dataclass(frozen=True)
class VqaV2(PublishedQuestions):
    """VQAv2's validation split; see ``PublishedQuestions`` for the options."""

    name: str = "vqav2"

    obtain, questions, hub = VQAV2.obtain, VQAV2.questions.format(split="val"), HUB["vqav2"]

    def read(self) -> list[Question]:
        """The 214,354 questions of val."""
        return self.hub.read("task=vqav2") if self.path is None else read_coco_questions(VQAV2, self.path, "val", "task")


@dataclass(frozen=True)
class OkVqa(PublishedQuestions):
    """OK-VQA's validation split; see ``PublishedQuestions`` for the other options.

    Attributes:
        lemmatize: bring nouns and verbs of answers to their base forms before they are compared, as BLIP-2's published figure has it.
    """

    lemmatize: bool = False
    name: str = "okvqa"

    obtain, questions, hub = OKVQA.obtain, OKVQA.questions.format(split="val"), HUB["okvqa"]

    def read(self) -> list[Question]:
        """The 5,046 questions of val. The lemmatiser is looked for now, not after hours of answers."""
        if self.lemmatize:
            lemmatizer()
        return self.hub.read("task=okvqa") if self.path is None else read_coco_questions(OKVQA, self.path, "val", "task")

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


@dataclass
class QuestionsEvaluation:
    """A task with its questions in memory; call it with a model."""

    task: PublishedQuestions
    questions: list[Question]
    interface: Any

    @property
    def sources(self) -> frozenset[str]:
        """Names of what is read, which may not calibrate a model."""
        return picture_sources(one.image for one in self.questions)

    def identity(self) -> dict[str, Any]:
        """Everything that the numbers depend on beside the model."""
        asked = [(one.id, one.text, one.answers, one.question_type, one.answer_type) for one in self.questions]
        inputs = fingerprint_by_size(asked, (one.image for one in self.questions), self.interface)
        options = {key: value for key, value in vars(self.task).items() if key not in ("path", "limit", "batch_size", "clean")}
        return {"metric": self.task.metric, "inputs": inputs, **options}

    @torch.no_grad()
    def __call__(self, model: PrunableModel, journal: Journal = IN_MEMORY) -> dict[str, float]:
        """Accuracy in percent: over all questions, per answer type and per question type; and the number of questions."""
        model.module.eval()
        generation = Generation(self.task.beams, self.task.max_new_tokens, length_penalty=self.task.length_penalty)
        batches = parts(self.questions, self.task.batch_size)
        answers = journal.run(batches, lambda batch: self.interface.answer(model, [one.example() for one in batch], generation))
        scores = [self.task.score(answer, one) for answer, one in zip(answers, self.questions, strict=True)]
        by_answer = _means([f"accuracy_{one.answer_type.replace('/', '_')}" for one in self.questions], scores)
        by_question = _means([one.question_type for one in self.questions], scores)
        return {"accuracy": 100 * fmean(scores), **by_answer, **by_question, "questions": len(scores)}


def _means(kinds: Sequence[str], scores: Sequence[float]) -> dict[str, float]:
    """{kind: its mean score in percent}, by name of kind."""
    grouped: dict[str, list[float]] = {}
    for kind, score in zip(kinds, scores, strict=True):
        grouped.setdefault(kind, []).append(score)
    return {kind: 100 * fmean(grouped[kind]) for kind in sorted(grouped)}


def fingerprint_by_size(rows: Iterable[Any], images: Iterable[str], interface: Any) -> str:
    """A hash of what is asked and of how (the prompt), and of the pictures' names and sizes: to read all of COCO would take minutes.

    Args:
        rows: what is asked and what is right, as values with a ``repr`` that says everything.
        images: paths; the folder they are in does not count.
        interface: of the model.
    """
    digest = hashlib.blake2b(f"{getattr(interface, 'prompt', None)!r}\n".encode(), digest_size=16)
    for row in rows:
        digest.update(f"{row!r}\n".encode())
    for image in dict.fromkeys(images):
        digest.update(f"{Path(image).name} {Path(image).stat().st_size}\n".encode())
    return digest.hexdigest()
