"""Calibration on captioned pictures: captions to write, to match, or to continue."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

from ecoflap.data.calibration_set import CalibrationSet, draw
from ecoflap.data.captions.options import CaptionsOptions
from ecoflap.data.captions.reading import CaptionSource, clean
from ecoflap.data.example import Example
from ecoflap.data.protocol import ShowsPictures
from ecoflap.data.splits import refuse_held_out
from ecoflap.errors import UserError, require_positive
from ecoflap.models.core.prunable import PrunableModel


@dataclass(frozen=True)
class Captions(CaptionsOptions, CaptionSource, ShowsPictures):
    """Pictures of a training split, each with one of its captions."""

    def __post_init__(self) -> None:
        require_positive("calibration", self, "samples")
        refuse_held_out(self.split)

    def check_data(self, group: str) -> None:
        """Refuse captions that are missing, or that tasks evaluate.

        Raises:
            UserError: if there are no captions, or a task evaluates them.
        """
        least = 2 if self.prefix else 1
        pictures = self.pictures(group, apart=True)
        if not any(len(clean(caption).split()) >= least for one in pictures for caption in one.captions):
            raise UserError(
                f"{group}={self.name}: no caption has a word to write{' after its beginning' * self.prefix};"
                " give others"
            )

    def load(self, model: PrunableModel, seed: int) -> CalibrationSet:
        """Draw pictures with captions and encode them.

        Raises:
            UserError: if the data set is missing, a task evaluates it, or the model reads no pictures with
                captions.
        """
        self.check_model(model)
        return self.encoded(model, self._drawn(seed))

    def read_files(self, model: PrunableModel, seed: int) -> list[Path]:
        """The pictures that ``load`` draws; a list of captions may name some outside the data set's folder.

        Raises:
            UserError: if the data set is missing, or a task evaluates it.
        """
        return [Path(image) for one in self._drawn(seed) for image in one.images]

    def _drawn(self, seed: int) -> list[Example]:
        """Pictures, each with one of its captions, or with its beginning and its rest."""
        pictures, choice = self.pictures("calibration", apart=True), random.Random(seed)
        examples: list[Example] = []
        for index in draw(len(pictures), len(pictures), seed):
            words = clean(choice.choice(pictures[index].captions)).split()
            if len(words) >= (2 if self.prefix else 1):
                cut = choice.randint(1, len(words) // 2) if self.prefix else 0
                examples.append(
                    Example(" ".join(words[:cut]), " ".join(words[cut:]), pictures[index].image, bare=True)
                )
            if len(examples) == self.samples:
                break
        return examples
