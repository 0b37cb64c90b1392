"""Easy-VQA as lessons for LLaVA: several questions about a picture in one row, and the picture's cached features.

A row holds the tokens of one picture, and behind them its questions with their answers, none of which sees
another: the picture is read once for all of its questions. A caption is the answer to no question.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tools.train_mini.pictures import CLASSES, Pictures, Questions, augment

IGNORED = -100
PADDING = -1  # the number of no question


@dataclass(frozen=True)
class Asked:
    """Tokens of a question, which are none for a caption, and of its answer with the end."""

    question: list[int]
    answer: list[int]

    @property
    def input_ids(self) -> list[int]:
        """The tokens that the model reads; after the last one, the end has to follow."""
        return [*self.question, *self.answer[:-1]]


@dataclass(frozen=True)
class Row:
    """Several questions about one picture, by its number."""

    picture: int
    asked: list[Asked]

    def answers(self, patches: int) -> list[Tensor]:
        """The places whose next token belongs to the answer, for each question, [answer tokens].

        They count the picture's tokens, one per patch; a caption begins after the last of these.
        """
        found, start = [], patches
        for asked in self.asked:
            end = start + len(asked.input_ids)
            first = start + len(asked.question) - 1 if asked.question else patches - 1
            found.append(torch.tensor([first, *range(end - len(asked.answer) + 1, end)]))
            start = end
        return found


@dataclass(frozen=True)
class Lesson:
    """A batch of rows, in each of which the picture's tokens come first.

    Attributes:
        pictures: numbers of the pictures, [rows].
        input_ids: of questions and answers, [rows, tokens].
        positions: of the picture's tokens too, [rows, picture + tokens].
        mask: 0 where a token sees another, else -inf, [rows, 1, picture + tokens, picture + tokens].
        labels: the token that has to follow, [rows, picture + tokens]; -100 where any may.
    """

    pictures: Tensor
    input_ids: Tensor
    positions: Tensor
    mask: Tensor
    labels: Tensor


def rows_of(questions: Questions, pictures: Pictures, tokenizer: Any) -> list[Row]:
    """One row per picture: its questions, and a caption where its class is known."""
    found = defaultdict(list)
    for text, answer, picture in zip(*questions, strict=True):
        found[picture].append(_encode(tokenizer, text, answer))
    for picture in pictures.named.tolist():
        found[picture].append(_encode(tokenizer, "", f"a {CLASSES[pictures.classes[picture]]}"))
    return [Row(picture, found[picture]) for picture in sorted(found)]


def _encode(tokenizer: Any, text: str, answer: str) -> Asked:
    return Asked(
        tokenizer(text)["input_ids"], [*tokenizer(f" {answer}")["input_ids"], tokenizer.eos_token_id]
    )


def shortened(row: Row, tokens: int, generator: torch.Generator) -> Row:
    """A random choice of a row's questions that has at most so many tokens."""
    chosen = []
    for index in torch.randperm(len(row.asked), generator=generator).tolist():
        asked = row.asked[index]
        if len(asked.input_ids) <= tokens:
            chosen.append(asked)
            tokens -= len(asked.input_ids)
    return Row(row.picture, chosen)


def lesson_of(rows: list[Row], patches: int) -> Lesson:
    """Put rows into a batch; a picture has so many patches, and each is a token."""
    longest = max(sum(len(asked.input_ids) for asked in row.asked) for row in rows)
    labels = torch.full((len(rows), patches + longest), IGNORED)
    tokens = torch.zeros_like(labels)
    number = torch.full_like(labels, PADDING)
    number[:, :patches] = 0
    positions = torch.arange(patches + longest).repeat(len(rows), 1)
    for index, row in enumerate(rows):
        start = patches
        for question, asked in enumerate(row.asked, 1):
            place = slice(start, start + len(asked.input_ids))
            tokens[index, place] = torch.tensor(asked.input_ids)
            number[index, place] = question
            positions[index, place] = patches + torch.arange(len(asked.input_ids))
            start = place.stop
        for asked, places in zip(row.asked, row.answers(patches), strict=True):
            labels[index, places] = torch.tensor(asked.answer)
    earlier = torch.ones(number.shape[1], number.shape[1]).tril().bool()
    seen = earlier & ((number[:, None] == 0) | (number[:, None] == number[:, :, None]))
    mask = torch.zeros(seen.shape).masked_fill(~seen, float("-inf"))[:, None]
    pictures = torch.tensor([row.picture for row in rows])
    return Lesson(pictures, tokens[:, patches:], positions, mask, labels)


@torch.inference_mode()
def picture_features(vision: Any, image_processor: Any, images: Tensor, variants: int) -> Tensor:
    """Outputs of a frozen ViT's last block without the class token, in bf16, [variants, images, patches,
    features].

    Args:
        vision: the ViT.
        image_processor: makes its inputs.
        images: [images, 3, height, width] in [-1, 1].
        variants: the first is the images themselves; the others are mirrored and shifted at random.
    """

    def features(seen: Tensor) -> Tensor:
        shown = ((seen + 1) * 127.5).round().to(torch.uint8)
        pixels = image_processor(images=list(shown), return_tensors="pt")["pixel_values"]
        return vision(pixel_values=pixels, output_hidden_states=True).hidden_states[-1][:, 1:].bfloat16()

    return torch.stack(
        [
            torch.cat([features(augment(part) if variant else part) for part in images.split(50)])
            for variant in range(variants)
        ]
    )


def cached_features(vision: Any, image_processor: Any, images: Tensor, variants: int, file: Path) -> Tensor:
    """The features, from a file where they are there already."""
    if not file.is_file():
        torch.save(picture_features(vision, image_processor, images, variants), file)
    return torch.load(file)
