"""Calibration on Easy-VQA's pictures, with captions made from their names."""

from __future__ import annotations

from dataclasses import dataclass

from ecoflap.data.calibration_set import CalibrationSet, draw
from ecoflap.data.classes import Classes, check_templates
from ecoflap.data.easy_vqa.options import EasyPicturesOptions
from ecoflap.data.easy_vqa.reading import NAMES, read_pictures
from ecoflap.data.example import Example
from ecoflap.data.protocol import ShowsPictures
from ecoflap.errors import require_positive
from ecoflap.models.core.prunable import PrunableModel


@dataclass(frozen=True)
class EasyPictures(EasyPicturesOptions, ShowsPictures):
    """Pictures of the training split with captions."""

    def __post_init__(self) -> None:
        require_positive("calibration", self, "samples")
        check_templates([self.caption], "calibration.caption")
        check_templates(self.templates, "calibration.templates")

    def load(self, model: PrunableModel, seed: int) -> CalibrationSet:
        """Draw pictures and encode them.

        Raises:
            UserError: if the model reads no pictures.
        """
        pictures = read_pictures("train")
        chosen = [pictures[index] for index in draw(len(pictures), self.samples, seed)]
        captioned = [
            Example(target=self.caption.format(one.target), image=one.image, label=one.label)
            for one in chosen
        ]
        return self.encoded(model, captioned, Classes(NAMES, tuple(self.templates)))
