"""Prefix language modelling: an encoder-decoder reads the first part of a text and predicts the rest."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from typing_extensions import override

from ecoflap.data.calibration_set import CalibrationSet, draw
from ecoflap.data.example import Example
from ecoflap.data.text.options import PrefixDocumentsOptions, PrefixTextOptions
from ecoflap.data.text.source import TextSource
from ecoflap.errors import UserError, require_positive
from ecoflap.models.core.encoding import encode_all, require_encoder
from ecoflap.models.core.prunable import PrunableModel

SHORTEST = 8  # words; shorter lines are headings and list entries


@dataclass(frozen=True)
class PrefixText(PrefixTextOptions, TextSource):
    """Paragraphs of a text, which are its lines, each split after a random word of its first half."""

    def __post_init__(self) -> None:
        require_positive("calibration", self, "samples", "documents")
        if self.max_words < SHORTEST:
            raise UserError(f"calibration.max_words={self.max_words} must be at least {SHORTEST}")

    def pieces(self) -> Sequence[str]:
        """The paragraphs to split, including those that are too short."""
        return self.read_text("calibration").split("\n")

    @override
    def check_data(self, option: str) -> None:
        """Refuse a text that is missing, or without a paragraph or document of enough words."""
        self.long_enough()

    def check_model(self, model: PrunableModel) -> None:
        """Refuse a model that reads no text with a target.

        Raises:
            UserError: if the model reads no text with a target.
        """
        require_encoder(model, f"calibration={self.name}", pictures=False)

    def long_enough(self) -> list[str]:
        """The paragraphs or documents that are long enough to split.

        Raises:
            UserError: if there are none.
        """
        found = [piece for piece in self.pieces() if len(piece.split(maxsplit=SHORTEST)) >= SHORTEST]
        if not found:
            raise UserError(
                f"calibration={self.name}: the text has no line or document of {SHORTEST} words or more; give"
                " another text"
            )
        return found

    def load(self, model: PrunableModel, seed: int) -> CalibrationSet:
        """Draw paragraphs or documents and split them.

        Raises:
            UserError: if there is no text, or the model reads no text with a target.
        """
        self.check_model(model)
        long_enough = self.long_enough()
        cut = random.Random(seed)
        examples = []
        for index in draw(len(long_enough), self.samples, seed):
            words = long_enough[index].split()[: self.max_words]
            place = cut.randint(1, len(words) // 2)
            examples.append(Example(" ".join(words[:place]), " ".join(words[place:])))
        return CalibrationSet(
            self.name, encode_all(model, examples, f"calibration={self.name}"), self.sources
        )


@dataclass(frozen=True)
class GivenText(PrefixText):
    """Lines of a text in memory, each split into a prefix and a target.

    Attributes:
        given: the text.
        given_sources: the sources of the text, see ``ecoflap.data.sources``.
    """

    given: str = ""
    given_sources: frozenset[str] = frozenset()

    @property
    @override
    def sources(self) -> frozenset[str]:
        return self.given_sources

    @override
    def read_text(self, option: str) -> str:
        """The text in memory."""
        return self.given


@dataclass(frozen=True)
class PrefixDocuments(PrefixDocumentsOptions, PrefixText):
    """The beginnings of documents, each split after a random word of its first half."""

    @override
    def pieces(self) -> Sequence[str]:
        """The documents."""
        return self.read_documents("calibration")
