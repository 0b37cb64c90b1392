"""Calibration text for language models: windows of tokens from a file or a data set, or rows of token ids."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from typing_extensions import override

from ecoflap.data.calibration_set import CalibrationSet, draw
from ecoflap.data.sources import token_sources
from ecoflap.data.text.bos import begin, first_tokens, opening, own_tokens
from ecoflap.data.text.checks import require_language_model, require_readable, require_tokenizer
from ecoflap.data.text.generated import check_generated, require_generates, with_generated
from ecoflap.data.text.options import BOS, DocumentsOptions, TextOptions, TokenFileOptions
from ecoflap.data.text.reading import check_characters, read_token_rows, tokenize, windows
from ecoflap.data.text.source import TextSource
from ecoflap.errors import UserError, require_choice, require_positive
from ecoflap.models.core.prunable import PrunableModel
from ecoflap.models.core.text_length import require_length


@dataclass(frozen=True)
class Text(TextOptions, TextSource):
    """Random windows of a text."""

    def __post_init__(self) -> None:
        require_positive("calibration", self, "samples", "sequence_length", "documents")
        require_choice("calibration.bos", self.bos.lower(), BOS)
        check_generated(self)
        if self.sequence_length == 1:
            raise UserError(
                "calibration.sequence_length=1: a language model's loss is over the next token, so a window"
                " needs two or more"
            )

    @override
    def check_length(self, texts: Sequence[str], option: str) -> None:
        """A single document may be shorter than a window."""
        check_characters([self.separator.join(texts)], self.sequence_length, option)

    def check_model(self, model: PrunableModel) -> None:
        """Refuse a model that can't read such windows, or whose tokenizer makes too few tokens of the text.

        Raises:
            UserError: if the model is not a language model, reads no windows of this length, or the text has
                too few tokens.
        """
        require_language_model(model, f"calibration={self.name}")
        require_generates(self, model)
        require_length(model, self.sequence_length, f"calibration.sequence_length={self.sequence_length}")
        require_tokenizer(model, f"calibration={self.name}")
        if self.is_short(self.sequence_length, "calibration"):
            self.draw(model.processor, seed=0)

    def load(self, model: PrunableModel, seed: int) -> CalibrationSet:
        """Draw the windows, and let the model generate others if asked.

        Raises:
            UserError: if the model is not a language model or reads no windows of this length, or the text is
                missing or too short.
        """
        self.check_model(model)
        rows = with_generated(self, model, self.draw(model.processor, seed), seed)
        return CalibrationSet(self.name, tuple({"input_ids": row} for row in rows), self.sources)

    def draw(self, tokenizer: Any, seed: int) -> Sequence[Tensor]:
        """The windows of the text, each [tokens]."""
        first = first_tokens(tokenizer, "calibration.bos", self.bos)
        tokens = tokenize(tokenizer, self.read_text("calibration"), opening(tokenizer, self.bos))
        rows = windows(tokens, self.sequence_length, "calibration", first=first)
        return list(rows[draw(len(rows), self.samples - self.generated, seed)])


@dataclass(frozen=True)
class Documents(DocumentsOptions, Text):
    """Random windows of long documents, one of each, as Wanda and SparseGPT draw them from C4."""

    @override
    def check_length(self, texts: Sequence[str], option: str) -> None:
        """A window is a part of one document."""
        check_characters(texts, self.sequence_length, option)

    @override
    def draw(self, tokenizer: Any, seed: int) -> Sequence[Tensor]:
        """The windows, each [tokens]: first documents are drawn, then a window of each."""
        documents = self.read_documents("calibration")
        first = first_tokens(tokenizer, "calibration.bos", self.bos)
        opened = opening(tokenizer, self.bos)
        length = own_tokens(self.sequence_length, first, "calibration")
        place, rows = random.Random(seed), list[Tensor]()
        for index in draw(len(documents), len(documents), seed):
            tokens = tokenize(tokenizer, documents[index], opened)
            if len(tokens) > length:
                start = place.randint(0, len(tokens) - length)
                rows.append(begin(tokens[None, start : start + length], first)[0])
            if len(rows) == self.samples - self.generated:
                break
        if not rows:
            raise UserError(
                f"calibration.sequence_length={self.sequence_length}: none of the {len(documents)} documents"
                " has more tokens; choose a smaller length"
            )
        return rows


@dataclass(frozen=True)
class TokenFile(TokenFileOptions):
    """Rows of token ids from a file."""

    def __post_init__(self) -> None:
        require_positive("calibration", self, "samples")
        check_generated(self)

    def check_data(self, group: str) -> None:
        """Refuse a file without such rows.

        Raises:
            UserError: if the file is without such rows.
        """
        read_token_rows(self.path, self.key, group)

    def check_model(self, model: PrunableModel) -> None:
        """Refuse a model that can't read the rows.

        Raises:
            UserError: if the model can't read the rows.
        """
        require_language_model(model, f"calibration={self.name}")
        require_generates(self, model)
        require_readable(model, read_token_rows(self.path, self.key, "calibration"), self.key, "calibration")

    def load(self, model: PrunableModel, seed: int) -> CalibrationSet:
        """Read the first rows, in the order of the file, and let the model generate others if asked.

        Raises:
            UserError: see ``check_data`` and ``check_model``.
        """
        self.check_model(model)
        rows = read_token_rows(self.path, self.key, "calibration")
        drawn = rows if self.samples is None else rows[: self.samples - self.generated]
        samples = tuple(
            {"input_ids": row} for row in with_generated(self, model, list(drawn.contiguous()), seed)
        )
        return CalibrationSet(self.name, samples, token_sources(self.path, self.key, rows))
