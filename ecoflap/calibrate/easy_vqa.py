"""Easy-VQA as calibration data: real images, questions and answers of its training split (package ``easy-vqa``, MIT)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ecoflap.calibrate.samples import CalibrationSet, Sample, draw
from ecoflap.errors import UserError, require_positive
from ecoflap.models.loading import decoder_only
from ecoflap.models.prunable import PrunableModel


@dataclass(frozen=True)
class Question:
    """One question about one image."""

    image: str
    text: str
    answer: str


def read_questions(split: str) -> list[Question]:
    """All questions of the ``train`` or ``test`` split, in the package's order."""
    import easy_vqa

    texts, answers, images = easy_vqa.get_train_questions() if split == "train" else easy_vqa.get_test_questions()
    paths = easy_vqa.get_train_image_paths() if split == "train" else easy_vqa.get_test_image_paths()
    return [Question(paths[image], text, answer) for text, answer, image in zip(texts, answers, images, strict=True)]


def load_image(path: str) -> Any:
    """An RGB picture."""
    from PIL import Image

    with Image.open(path) as file:
        return file.convert("RGB")


def require_image_processor(model: PrunableModel, option: str) -> Any:
    """The model's processor.

    Raises:
        UserError: the model reads no images.
    """
    if not hasattr(model.processor, "image_processor"):
        raise UserError(
            f"{option}=easy_vqa asks questions about images, and {model.name} reads only text; choose another {option}, such as wikitext2"
        )
    return model.processor


def encode_question(model: PrunableModel, question: Question) -> Sample:
    """Model inputs for one question, without a batch dimension."""
    processor = require_image_processor(model, "calibration")
    inputs = processor(images=load_image(question.image), text=model.prompt.format(question.text), return_tensors="pt")
    return {name: tensor[0] for name, tensor in inputs.items()}


def encode_answer(model: PrunableModel, answer: str) -> Tensor:
    """Target tokens of an answer, [tokens]."""
    return model.processor.tokenizer(answer, return_tensors="pt")["input_ids"][0]


def with_answer(model: PrunableModel, inputs: Sample, answer: str) -> Sample:
    """Add the answer as the target: as labels of a T5, or appended to the prompt of a decoder-only model."""
    target = encode_answer(model, answer)
    if not decoder_only(model.module):
        return {**inputs, "labels": target}
    target = target[target != model.processor.tokenizer.bos_token_id]
    input_ids = torch.cat([inputs["input_ids"], target])
    labels = torch.cat([torch.full_like(inputs["input_ids"], -100), target])
    return {**inputs, "input_ids": input_ids, "attention_mask": torch.ones_like(input_ids), "labels": labels}


@dataclass(frozen=True)
class EasyVqa:
    """Questions of the training split, with their answers.

    Attributes:
        samples: number of questions.
        name: for people and result files.
    """

    samples: int = 128
    name: str = "easy_vqa"

    def __post_init__(self) -> None:
        require_positive("calibration", self, "samples")

    def load(self, model: PrunableModel, seed: int) -> CalibrationSet:
        """Draw questions and make model inputs of them."""
        questions = read_questions("train")
        chosen = [questions[index] for index in draw(len(questions), self.samples, seed)]
        return CalibrationSet(self.name, tuple(with_answer(model, encode_question(model, question), question.answer) for question in chosen))
