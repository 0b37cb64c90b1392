"""Easy-VQA: exact-match accuracy on the package's own held-out questions."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ecoflap.calibrate.easy_vqa import Question, load_image, read_questions, require_image_processor
from ecoflap.console import track
from ecoflap.errors import UserError, require_positive
from ecoflap.models.loading import decoder_only
from ecoflap.models.prunable import PrunableModel


@dataclass(frozen=True)
class EasyVqa:
    """Ask the held-out questions and compare the generated answers.

    Attributes:
        limit: number of questions, evenly spaced over the split; null for all 9,673.
        batch_size: questions per generation; changes nothing beyond rounding.
        beams: beam width.
        max_new_tokens: longest answer.
        length_penalty: of the beam search.
        name: for people and result files.
    """

    limit: int | None = None
    batch_size: int = 256
    beams: int = 1
    max_new_tokens: int = 4
    length_penalty: float = 1.0
    name: str = "easy_vqa"

    def __post_init__(self) -> None:
        require_positive("task", self, "limit", "batch_size", "beams", "max_new_tokens")

    def load(self, model: PrunableModel) -> EasyVqaEvaluation:
        """Read the questions and prepare the images once for dense and pruned model.

        Raises:
            UserError: the model reads no images, or the limit is out of range.
        """
        processor = require_image_processor(model, "task")
        questions = read_questions("test")
        if self.limit is not None and self.limit > len(questions):
            raise UserError(f"task.limit={self.limit}: there are {len(questions)} questions; choose 1 to {len(questions)}, or null for all")
        count = self.limit or len(questions)
        chosen = [questions[index * len(questions) // count] for index in range(count)]
        return EasyVqaEvaluation(self, chosen, _prepare_images(processor, chosen), model.prompt)


def _prepare_images(processor: Any, questions: Sequence[Question]) -> dict[str, Tensor]:
    """{path: pixel values [3, height, width]}; each image is asked about some ten times."""
    paths = sorted({question.image for question in questions})
    pixels = processor.image_processor(images=[load_image(path) for path in paths], return_tensors="pt")["pixel_values"]
    return dict(zip(paths, pixels, strict=True))


@dataclass
class EasyVqaEvaluation:
    """The task with its data in memory; call it with a model."""

    task: EasyVqa
    questions: list[Question]
    images: dict[str, Tensor]
    prompt: str
    predictions: list[str] = field(default_factory=list)

    def identity(self) -> dict[str, Any]:
        """Everything that the numbers depend on beside the model."""
        digest = hashlib.blake2b(digest_size=16)
        for question in self.questions:
            digest.update(f"{self.prompt.format(question.text)}\t{question.answer}\n".encode())
            digest.update(self.images[question.image].numpy().tobytes())
        generation = {"beams": self.task.beams, "max_new_tokens": self.task.max_new_tokens, "length_penalty": self.task.length_penalty}
        return {"metric": "exact match", "inputs": digest.hexdigest(), **generation}

    @torch.no_grad()
    def __call__(self, model: PrunableModel) -> dict[str, float]:
        """Accuracy in percent: over all questions, over yes/no questions, over the others; and the number of questions."""
        model.module.eval()
        parts = [self.questions[start : start + self.task.batch_size] for start in range(0, len(self.questions), self.task.batch_size)]
        self.predictions = [answer for part in track(parts, "evaluate", total=len(parts)) for answer in self._answer(model, part)]
        right = [prediction == question.answer for prediction, question in zip(self.predictions, self.questions, strict=True)]
        closed = [question.answer in ("yes", "no") for question in self.questions]
        return {
            "accuracy": _percent(right),
            "accuracy_yes_no": _percent([r for r, c in zip(right, closed, strict=True) if c]),
            "accuracy_open": _percent([r for r, c in zip(right, closed, strict=True) if not c]),
            "questions": len(right),
        }

    def _answer(self, model: PrunableModel, questions: Sequence[Question]) -> list[str]:
        module: Any = model.module
        tokenizer, weight = model.processor.tokenizer, next(module.parameters())
        # A decoder-only model writes on from the last token, so padding has to stand before the question.
        tokenizer.padding_side = "left" if decoder_only(model.module) else "right"
        texts = [model.prompt.format(question.text) for question in questions]
        # The processor puts the image tokens into the text only when it is given an image; any one will do for that.
        inputs = model.processor(images=load_image(questions[0].image), text=texts, padding=True, return_tensors="pt").to(weight.device)
        pixels = torch.stack([self.images[question.image] for question in questions]).to(weight)
        tokens = module.generate(
            pixel_values=pixels,
            input_ids=inputs["input_ids"],
            attention_mask=inputs["attention_mask"],
            num_beams=self.task.beams,
            max_new_tokens=self.task.max_new_tokens,
            length_penalty=self.task.length_penalty if self.task.beams > 1 else None,
            do_sample=False,
        )
        return [text.strip().lower() for text in tokenizer.batch_decode(tokens, skip_special_tokens=True)]


def _percent(right: Sequence[bool]) -> float:
    return 100 * sum(right) / len(right) if right else float("nan")
