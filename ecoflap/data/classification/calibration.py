"""Training pictures of a classification set, with captions made from the names of their classes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ecoflap.data.calibration_set import CalibrationSet, draw
from ecoflap.data.classes import Classes, check_templates
from ecoflap.data.classification.class_names import OPENAI
from ecoflap.data.classification.options import CalibrationOptions
from ecoflap.data.classification.reading import Pictures, PictureSource
from ecoflap.data.example import Example
from ecoflap.data.protocol import ShowsPictures
from ecoflap.data.splits import refuse_held_out
from ecoflap.errors import require_positive
from ecoflap.models.core.encoding import require_encoder
from ecoflap.models.core.protocols import NamesClasses
from ecoflap.models.core.prunable import PrunableModel


@dataclass(frozen=True)
class Classification(CalibrationOptions, PictureSource, ShowsPictures):
    """Pictures of the training split."""

    def __post_init__(self) -> None:
        require_positive("calibration", self, "samples")
        self.facts("calibration")
        if self.templates is not None:
            check_templates(self.templates, "calibration.templates", (OPENAI,))
        if self.caption is not None:
            check_templates([self.caption], "calibration.caption")
        refuse_held_out(self.split)

    def load(self, model: PrunableModel, seed: int) -> CalibrationSet:
        """Draw pictures over all classes and encode them.

        Raises:
            UserError: if there are no pictures, or the model reads none.
        """
        option, facts = f"calibration={self.name}", self.facts("calibration")
        interface = require_encoder(model, option, pictures=True)
        pictures = self._of_split(model)
        chosen = draw_over_classes(pictures.examples, self.samples, seed)
        if isinstance(interface, NamesClasses):
            labels = pictures.labels_in(interface.names, option, facts.indexed)
            return self.encoded(model, [replace(one, label=labels[one.label or 0]) for one in chosen])
        caption = facts.prompt if self.caption is None else self.caption
        captioned = [replace(one, target=caption.format(one.target)) for one in chosen]
        return self.encoded(model, captioned, Classes(pictures.names, self.prompts("calibration")))

    def read_files(self, model: PrunableModel, seed: int) -> list[Path]:
        """The pictures that ``load`` draws; a split file may name some outside the data set's folder.

        Raises:
            UserError: if there are no pictures.
        """
        chosen = draw_over_classes(self._of_split(model).examples, self.samples, seed)
        return [Path(image) for one in chosen for image in one.images]

    def _of_split(self, model: PrunableModel) -> Pictures:
        """All pictures of the split, whose classes have names unless the model's own are used by index."""
        indexed = isinstance(model.interface, NamesClasses) and self.facts("calibration").indexed
        return self.read("calibration", named=not indexed, indexed=indexed)


def draw_over_classes(examples: Sequence[Example], count: int, seed: int) -> list[Example]:
    """Draw ``count`` examples in rounds, each with one example of every class that has more.

    Classes repeat as late as possible, because a contrastive loss takes every other caption of a batch as a
    negative, even an equal one.
    """
    rounds, seen = [], Counter[int | None]()
    for index in draw(len(examples), len(examples), seed):
        label = examples[index].label
        rounds.append((seen[label], index))
        seen[label] += 1
    return [examples[index] for _, index in sorted(rounds, key=lambda pair: pair[0])[:count]]
