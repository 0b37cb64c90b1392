"""Calibration text for language models: windows of tokens from a file or a data set, or rows of token ids."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from typing_extensions import override

from ecoflap.data.calibration_set import CalibrationSet, draw
from ecoflap.data.sources import file_source
from ecoflap.data.text.bos import begin, bos_token, opening
from ecoflap.data.text.generated import check_generated, require_generates, with_generated
from ecoflap.data.text.options import BOS, DocumentsOptions, TextOptions, TokenFileOptions
from ecoflap.data.text.reading import check_characters, read_token_rows, tokenize, windows
from ecoflap.data.text.source import TextSource
from ecoflap.errors import UserError, require_choice, require_positive
from ecoflap.models.core.prunable import PrunableModel
from ecoflap.models.core.text_length import require_length


def require_readable(model: PrunableModel, rows: Tensor, key: str, option: str) -> None:
    """Refuse rows of tokens that a language model can't read.

    Args:
        model: the language model.
        rows: [rows, tokens].
        key: their name in the file.
        option: the config group of the part, for the message.

    Raises:
        UserError: if an id is outside the vocabulary, or the rows are longer than the model's positions.
    """
    vocabulary = vocabulary_of(model)
    if int(rows.max()) >= vocabulary:
        raise UserError(
            f"{option}.key={key} holds ids from {int(rows.min())} to {int(rows.max())}; the model has a"
            f" vocabulary of {vocabulary}"
        )
    require_length(model, rows.shape[1], f"{option}.key={key} has rows of {rows.shape[1]} tokens")


def vocabulary_of(model: PrunableModel) -> int:
    """The number of token ids in the model's input embedding."""
    module: Any = model.module
    return int(module.get_input_embeddings().num_embeddings)


def require_tokenizer(model: PrunableModel, option: str) -> None:
    """Refuse a model without a tokenizer, unless it is on the meta device, where none is read.

    Raises:
        UserError: if it has none.
    """
    if model.processor is None and model.device.type != "meta":
        raise UserError(
            f"{option} is a text, and {model.name} has no tokenizer to read it with; load the model with its"
            " tokenizer, as in ecoflap.load(model, tokenizer)"
        )


def require_language_model(model: PrunableModel, option: str) -> None:
    """Refuse a model that reads more than text.

    Raises:
        UserError: if it reads images.
    """
    if hasattr(model.processor, "image_processor"):
        raise UserError(
            f"{option} is a text for language models, and {model.name} answers questions about images; choose"
            f" another {option.partition('=')[0]}, such as easy_vqa"
        )


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
        token = bos_token(tokenizer, "calibration.bos", self.bos)
        tokens = tokenize(tokenizer, self.read_text("calibration"), opening(tokenizer, self.bos))
        rows = windows(tokens, self.sequence_length, "calibration", bos=token)
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
        documents, token = (
            self.read_documents("calibration"),
            bos_token(tokenizer, "calibration.bos", self.bos),
        )
        length, opened = self.sequence_length - (token is not None), opening(tokenizer, self.bos)
        place, rows = random.Random(seed), list[Tensor]()
        for index in draw(len(documents), len(documents), seed):
            tokens = tokenize(tokenizer, documents[index], opened)
            if len(tokens) > length:
                start = place.randint(0, len(tokens) - length)
                rows.append(begin(tokens[None, start : start + length], token)[0])
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
        return CalibrationSet(self.name, samples, file_source(self.path, self.key))
