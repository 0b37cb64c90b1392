"""Calibration of a sentence encoder on halves of passages, which should be nearer than other passages."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ecoflap.data.calibration_set import CalibrationSet, draw
from ecoflap.data.text.source import TextSource
from ecoflap.errors import UserError, require_positive
from ecoflap.models.core.prunable import PrunableModel
from ecoflap.models.core.text_length import require_length
from ecoflap_sentences.model import halves_loss

SHORTEST = 32  # words; shorter lines are headings and captions
LEAST = 3  # tokens of a half: one of a word, between that of the start and that of the end


def require_halves(model: PrunableModel, part: str, length: int) -> None:
    """Refuse a model that makes no sentence embeddings, or reads no halves of that length.

    Args:
        model: any model.
        part: the part that embeds halves, such as ``task=sentence_retrieval``.
        length: its ``sequence_length``.

    Raises:
        UserError: if the model makes no sentence embeddings, or reads no halves of that length.
    """
    group = part.split("=")[0]
    if model.loss_function is not halves_loss:
        raise UserError(
            f"{part} looks at sentence embeddings, and {model.name} makes none; choose another {group}, or"
            " model=minilm_l6"
        )
    option = f"{group}.sequence_length={length}"
    if length < LEAST:
        raise UserError(f"{option} leaves room for no word of a half; choose {LEAST} or more")
    require_length(model, length, option)


def passages(text: str, option: str) -> list[str]:
    """The lines of a text that are long enough to be passages.

    Raises:
        UserError: if there are none.
    """
    found = [line.strip() for line in text.splitlines() if len(line.split()) >= SHORTEST]
    if len(found) < 2:
        raise UserError(
            f"{option}: the text has {len(found)} lines of {SHORTEST} words or more, and 2 are needed; give a"
            " text with a passage per line"
        )
    return found


def encode_halves(model: PrunableModel, texts: Sequence[str], length: int) -> dict[str, Tensor]:
    """Encode both halves of passages: ``input_ids`` and ``attention_mask``, [passages, 2, length]."""
    words = [text.split() for text in texts]
    halves = [" ".join(half) for each in words for half in (each[: len(each) // 2], each[len(each) // 2 :])]
    encoded = model.processor(
        halves, padding="max_length", truncation=True, max_length=length, return_tensors="pt"
    )
    return {name: encoded[name].unflatten(0, (-1, 2)) for name in ("input_ids", "attention_mask")}


@dataclass(frozen=True)
class Sentences(TextSource):
    """Passages drawn from a text.

    Attributes:
        samples: number of passages.
        sequence_length: most tokens of a half; shorter halves are padded, which changes nothing.
        name: shown in logs and written to result files.
    """

    split: str = "train"
    samples: int = 128
    sequence_length: int = 64
    name: str = "sentences"

    def __post_init__(self) -> None:
        require_positive("calibration", self, "samples", "sequence_length")

    def check_length(self, texts: Sequence[str], option: str) -> None:
        """See ``TextSource``; a text needs lines that are long enough to be passages."""
        passages(self.separator.join(texts), option)

    def check_model(self, model: PrunableModel) -> None:
        """Refuse a model that makes no sentence embeddings, or reads no halves of that length.

        Raises:
            UserError: if the model makes no sentence embeddings, or reads no halves of that length.
        """
        require_halves(model, f"calibration={self.name}", self.sequence_length)

    def load(self, model: PrunableModel, seed: int) -> CalibrationSet:
        """Draw the passages.

        Raises:
            UserError: if the model is not a sentence encoder, or the text is missing or has no passages.
        """
        self.check_model(model)
        every = passages(self.read_text("calibration"), "calibration")
        encoded = encode_halves(
            model, [every[index] for index in draw(len(every), self.samples, seed)], self.sequence_length
        )
        rows = zip(*encoded.values(), strict=True)
        return CalibrationSet(
            self.name,
            tuple(dict(zip(encoded, map(torch.clone, row), strict=True)) for row in rows),
            self.sources,
        )
