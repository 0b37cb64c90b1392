"""MMLU: which of four letters does the model find most likely after the question?"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ecoflap.data.mmlu.calibration_error import expected_calibration_error, rms_calibration_error
from ecoflap.data.mmlu.categories import GROUPS
from ecoflap.data.mmlu.options import MmluTaskOptions
from ecoflap.data.mmlu.reading import (
    LETTERS,
    Question,
    prompt,
    question_sources,
    read_with_shots,
    warn_of_few_shots,
)
from ecoflap.errors import UserError, require_positive
from ecoflap.evaluate.inputs import commonest, error_of_mean, parts, percent, spread
from ecoflap.evaluate.items import Items
from ecoflap.evaluate.prediction_log import IN_MEMORY, PredictionLog
from ecoflap.models.core.logits import finite
from ecoflap.models.core.protocols import Chooses, require
from ecoflap.models.core.prunable import PrunableModel
from ecoflap.models.core.text_length import at_most, most_tokens, require_length


@dataclass(frozen=True)
class Mmlu(MmluTaskOptions):
    """Accuracy over all test questions, per category, subcategory and subject, and calibration errors.

    All means are over questions. Subjects that are not MMLU's belong to no category.
    """

    def __post_init__(self) -> None:
        require_positive("task", self, "limit", "batch_size", "max_tokens")
        if self.shots < 0:
            raise UserError(f"task.shots={self.shots} must be at least 0")

    def check_data(self, group: str) -> None:
        """Refuse questions that are missing or damaged.

        Raises:
            UserError: if questions are missing or damaged.
        """
        for subject, questions in self.subjects(group)[1].items():
            spread(questions, None, f"questions of {subject}")

    def check_model(self, model: PrunableModel) -> None:
        """Refuse a model that can't choose between answers.

        Raises:
            UserError: if the model can't choose between answers.
        """
        require(model, Chooses, f"task={self.name}")

    def subjects(self, group: str) -> tuple[dict[str, list[Question]], dict[str, list[Question]]]:
        """The questions for shots and the questions to ask, by subject.

        Raises:
            UserError: if they are missing or damaged.
        """
        return read_with_shots(self.path, "test", self.shots, group)

    def load(self, model: PrunableModel) -> MmluEvaluation:
        """Read the questions and write the prompts.

        Raises:
            UserError: if there are no questions, the model can't choose, or it can't read the longest
                question.
        """
        self.check_model(model)
        interface: Any = model.interface
        dev, test = self.subjects("task")
        warn_of_few_shots(test, dev, self.shots, "task")
        asked, measured, most = [], [], at_most(model, self.max_tokens)
        for subject, questions in test.items():
            limit = None if self.limit is None else min(self.limit, len(questions))
            for question in spread(questions, limit, "questions"):
                text = fitting_prompt(interface, subject, dev.get(subject, [])[: self.shots], question, most)
                asked.append(Asked(subject, text, question.answer))
                measured.append(question)
        if most_tokens(model.module) is not None:  # elsewhere nothing is too long, and counting takes a while
            longest = max(interface.length(one.text) for one in asked)
            require_length(model, longest, f"task={self.name} has a question of {longest} tokens")
        return MmluEvaluation(self, asked, interface, question_sources(measured))


@dataclass(frozen=True)
class Asked:
    """A question as the model reads it."""

    subject: str
    text: str
    answer: str


def fitting_prompt(
    interface: Any, subject: str, shots: Sequence[Question], question: Question, max_tokens: int
) -> str:
    """The prompt with as many of the first shots as fit into ``max_tokens``, possibly none."""
    for count in range(len(shots), 0, -1):
        text = prompt(subject, shots[:count], question)
        if interface.length(text) <= max_tokens:
            return text
    return prompt(subject, [], question)


@dataclass
class MmluEvaluation:
    """The task with its prompts; call it with a model."""

    task: Mmlu
    asked: list[Asked]
    interface: Any
    sources: frozenset[str] = frozenset()

    def identity(self) -> dict[str, Any]:
        """Everything that the metrics depend on beside the model."""
        digest = hashlib.blake2b(repr(self.asked).encode(), digest_size=16)
        return {"metric": "accuracy of the likeliest letter", "inputs": digest.hexdigest()}

    def chance(self) -> float:
        """The accuracy of choosing the commonest letter each time, in percent."""
        return commonest(one.answer for one in self.asked)

    @torch.no_grad()
    def __call__(self, model: PrunableModel, prediction_log: PredictionLog = IN_MEMORY) -> dict[str, float]:
        """Accuracy and calibration errors in percent, and the number of questions.

        Raises:
            NumericalError: if a logit is not finite.
        """
        model.module.eval()
        batches = parts(self.asked, self.task.batch_size)
        found = torch.tensor(
            prediction_log.run(
                batches,
                lambda batch: finite(
                    self.interface.choose(model, [one.text for one in batch], LETTERS)
                ).tolist(),
            ),
            dtype=torch.float32,
        )
        confidence, choice = found.double().softmax(dim=-1).max(dim=-1)
        right = [LETTERS[index] == one.answer for index, one in zip(choice.tolist(), self.asked, strict=True)]
        prediction_log.note(Items("accuracy", right))
        return {
            "accuracy": percent(right),
            **self._by_group(right),
            "rms_calibration_error": rms_calibration_error(confidence, torch.tensor(right)),
            "expected_calibration_error": expected_calibration_error(confidence, torch.tensor(right)),
            "questions": len(right),
            "accuracy_stderr": 100 * error_of_mean(right),
        }

    def _by_group(self, right: list[bool]) -> dict[str, float]:
        """Accuracy of each category, then of each subcategory, then of each subject."""
        groups: tuple[dict[str, list[bool]], ...] = ({}, {}, {})
        for one, correct in zip(self.asked, right, strict=True):
            category, subcategory = GROUPS.get(one.subject, (None, None))
            names = (
                category and f"category/{category}",
                subcategory and f"subcategory/{subcategory}",
                one.subject,
            )
            for group, name in zip(groups, names, strict=True):
                if name is not None:
                    group.setdefault(name, []).append(correct)
        return {name: percent(of_it) for group in groups for name, of_it in group.items()}
