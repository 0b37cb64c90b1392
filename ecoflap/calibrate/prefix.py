"""Prefix language modelling for encoder-decoder models: a paragraph is cut in two, the model reads the beginning and writes the rest."""

from __future__ import annotations

import random
from dataclasses import dataclass

from ecoflap.calibrate.samples import CalibrationSet, draw
from ecoflap.calibrate.text import TextSource
from ecoflap.errors import UserError, require_positive
from ecoflap.models.examples import Example, encode_all
from ecoflap.models.prunable import PrunableModel

SHORTEST = 8  # words; shorter lines are headings and list entries


@dataclass(frozen=True)
class PrefixText(TextSource):
    """Paragraphs of a text, each cut after a random word of its first half.

    Attributes:
        samples: number of paragraphs.
        max_words: longer paragraphs lose their end.
        name: for people and result files.
    """

    split: str = "train"
    samples: int = 128
    max_words: int = 200
    name: str = "prefix_text"

    def __post_init__(self) -> None:
        require_positive("calibration", self, "samples")
        if self.max_words < SHORTEST:
            raise UserError(f"calibration.max_words={self.max_words} must be at least {SHORTEST}")

    def load(self, model: PrunableModel, seed: int) -> CalibrationSet:
        """Draw paragraphs and cut them.

        Raises:
            UserError: no text there, or the model reads no text with a target.
        """
        lines = [line.split() for line in self.read_text("calibration").split("\n")]
        paragraphs = [words[: self.max_words] for words in lines if len(words) >= SHORTEST]
        if not paragraphs:
            raise UserError(f"calibration={self.name}: the text has no line of {SHORTEST} words or more, which this takes for a paragraph")
        cut = random.Random(seed)
        examples = []
        for index in draw(len(paragraphs), self.samples, seed):
            words = paragraphs[index]
            place = cut.randint(1, len(words) // 2)
            examples.append(Example(" ".join(words[:place]), " ".join(words[place:])))
        return CalibrationSet(self.name, encode_all(model, examples, f"calibration={self.name}"))
